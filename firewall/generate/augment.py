"""Differentiable augmentation of both real and generated images, in both steps (Zhao et al. 2020,
arXiv:2006.10738): D cannot learn its few images by heart, and G does not learn the augmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

Augmentation = Literal["translation", "cutout", "brightness"]
#: Shares of the side: of a move, and of a hole.
_MOVE, _HOLE = 0.125, 0.5


def diff_augment(x: Tensor, kinds: Sequence[Augmentation], generator: Generator) -> Tensor:
    """Each row its own way; [N, C, H, W] to the same, with gradients.

    Args:
        x: images in [0, 1].
        kinds: in this order.
        generator: of every draw.

    """
    made = {"translation": _moved, "cutout": _cut, "brightness": _lit}
    for kind in kinds:
        x = made[kind](x, generator)
    return x


def _moved(x: Tensor, generator: Generator) -> Tensor:
    rows, _, height, width = x.shape
    down, across = max(1, int(height * _MOVE)), max(1, int(width * _MOVE))
    padded = F.pad(x, (across, across, down, down))
    tops = torch.randint(0, 2 * down + 1, (rows, 1), generator=generator)
    lefts = torch.randint(0, 2 * across + 1, (rows, 1), generator=generator)
    line = (tops + torch.arange(height))[:, :, None]
    column = (lefts + torch.arange(width))[:, None, :]
    number = torch.arange(rows)[:, None, None]
    taken = padded.permute(0, 2, 3, 1)[number.to(x.device), line.to(x.device), column.to(x.device)]
    return taken.permute(0, 3, 1, 2)


def _cut(x: Tensor, generator: Generator) -> Tensor:
    rows, _, height, width = x.shape
    middle = torch.rand((rows, 2, 1, 1), generator=generator)
    line = torch.arange(height).view(1, -1, 1) + 0.5
    column = torch.arange(width).view(1, 1, -1) + 0.5
    inside = ((line - middle[:, 0] * height).abs() < _HOLE / 2 * height) & (
        (column - middle[:, 1] * width).abs() < _HOLE / 2 * width
    )
    return x * (~inside)[:, None].to(x)


def _lit(x: Tensor, generator: Generator) -> Tensor:
    return x + (torch.rand((len(x), 1, 1, 1), generator=generator) - 0.5).to(x) * 0.5
