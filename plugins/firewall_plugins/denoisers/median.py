"""Median of 3 x 3 pixels."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from firewall.stages import API_VERSION, Denoiser, StageConfig, with_surrogate

# Exchanges after which entry 4 of nine holds their median: 19 minimum/maximum pairs (Paeth,
# "Median finding on a 3 x 3 grid", Graphics Gems, 1990). In the graph these are elementwise
# operations, several times faster than sorting nine values a pixel.
_EXCHANGES = (
    (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3),
    (5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2),
)  # fmt: skip


class Median(Denoiser):
    """Median filter of each channel (Xu, Evans, Qi 2018, arXiv:1704.01155, local smoothing)."""

    api_version: ClassVar[int] = API_VERSION

    class Config(StageConfig):
        """A 3 x 3 median has nothing to set."""

    def __init__(self, config: Config) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same; borders replicate. BPDA surrogate: the mean of the nine."""
        return with_surrogate(x, _median, _mean)


def _median(x: Tensor) -> Tensor:
    height, width = x.shape[2], x.shape[3]
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    nine = [
        padded[:, :, row : row + height, column : column + width]
        for row in range(3)
        for column in range(3)
    ]
    for low, high in _EXCHANGES:
        smaller = torch.minimum(nine[low], nine[high])
        nine[high] = torch.maximum(nine[low], nine[high])
        nine[low] = smaller
    return nine[4]


def _mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
