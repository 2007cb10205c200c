"""Perturbations of a chosen kind, and images seen through something, for `GradientAttack`.

Shapes make a direction of a gradient; what images are seen through is drawn anew at each step.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from firewall.attack.physical import jpeg

#: Standard deviation and reach of the kernel of translation-invariant attacks, in pixels.
_TI_SIGMA, _TI_REACH = 3.0, 7
#: Cells of low-frequency perturbations along each side.
_CELLS = 28
#: Local standard deviation of brightness from which on a place counts as textured.
_TEXTURE = 0.03


def translation_invariant(gradient: Tensor, x: Tensor) -> Tensor:
    """TI: the gradient averaged over shifts (Dong et al. 2019, arXiv:1904.02884)."""
    place = torch.arange(-_TI_REACH, _TI_REACH + 1, dtype=gradient.dtype)
    line = torch.exp(-0.5 * (place / _TI_SIGMA) ** 2)
    line = line / line.sum()
    channels = gradient.shape[1]
    kernel = (line[:, None] * line[None]).expand(channels, 1, -1, -1)
    return F.conv2d(gradient, kernel, padding=_TI_REACH, groups=channels).sign()


def low_frequency(gradient: Tensor, x: Tensor) -> Tensor:
    """Smooth perturbations: one sign a cell, interpolated (after Guo et al. 2018,
    arXiv:1809.08758).
    """
    height, width = gradient.shape[2:]
    cells = F.adaptive_avg_pool2d(gradient, (min(_CELLS, height), min(_CELLS, width))).sign()
    return F.interpolate(cells, (height, width), mode="bilinear", align_corners=False)


def one_for_all_channels(gradient: Tensor, x: Tensor) -> Tensor:
    """Move all channels alike, so that no colour changes."""
    return gradient.sum(dim=1, keepdim=True).sign().expand_as(gradient)


def textured_only(gradient: Tensor, x: Tensor) -> Tensor:
    """Move all channels alike, and smooth areas not at all."""
    grey = x.mean(dim=1, keepdim=True)
    mean = F.avg_pool2d(grey, 5, 1, 2, count_include_pad=False)
    square = F.avg_pool2d(grey * grey, 5, 1, 2, count_include_pad=False)
    spread = (square - mean * mean).clamp_min(0.0).sqrt()
    return one_for_all_channels(gradient, x) * (spread > _TEXTURE)


def diverse_inputs(x: Tensor, generator: Generator) -> Tensor:
    """DI: often smaller, at some place (Xie et al. 2019, arXiv:1803.06978)."""
    if float(torch.rand((), generator=generator)) > 0.7:
        return x
    height, width = x.shape[2:]
    share = 0.85 + 0.15 * float(torch.rand((), generator=generator))
    high, wide = max(1, round(share * height)), max(1, round(share * width))
    small = F.interpolate(x, (high, wide), mode="bilinear", align_corners=False)
    top = int(torch.randint(0, height - high + 1, (), generator=generator))
    left = int(torch.randint(0, width - wide + 1, (), generator=generator))
    return F.pad(small, [left, width - wide - left, top, height - high - top])


def through_jpeg(x: Tensor, generator: Generator) -> Tensor:
    """As JPEG of a quality of 60 to 95, drawn for each row."""
    return jpeg(x, 60 + 35 * torch.rand(len(x), generator=generator))
