"""Gaussian blur."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from firewall.stages import API_VERSION, Denoiser, StageConfig


class GaussianBlur(Denoiser):
    """Convolution with a Gaussian: perturbations live in high frequencies, labels rarely do."""

    api_version: ClassVar[int] = API_VERSION

    class Config(StageConfig):
        """Settings of the blur."""

        #: Standard deviation in pixels.
        sigma: float = Field(default=1.0, gt=0, le=8)

    def __init__(self, config: Config) -> None:
        super().__init__()
        radius = math.ceil(3 * config.sigma)
        offset = torch.arange(-radius, radius + 1, dtype=torch.float32)
        weights = torch.exp(-0.5 * (offset / config.sigma) ** 2)
        self.radius = radius
        self.weights: Tensor
        self.register_buffer("weights", weights / weights.sum())

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same; borders replicate. Separable: a row pass, a column pass."""
        channels = x.shape[1]
        size = 2 * self.radius + 1
        rows = self.weights.view(1, 1, 1, size).expand(channels, 1, 1, size)
        columns = self.weights.view(1, 1, size, 1).expand(channels, 1, size, 1)
        pad = (self.radius,) * 4
        y = F.pad(x, pad, mode="replicate")
        y = F.conv2d(F.conv2d(y, rows, groups=channels), columns, groups=channels)
        return y.clamp(0.0, 1.0)
