"""Reduction of the colour depth."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from firewall.stages import API_VERSION, Denoiser, StageConfig, with_surrogate


class BitDepth(Denoiser):
    """Rounds every value to few levels (Xu, Evans, Qi 2018, arXiv:1704.01155)."""

    api_version: ClassVar[int] = API_VERSION

    class Config(StageConfig):
        """Settings of the reduction."""

        #: Bits a channel that are left.
        bits: int = Field(default=3, ge=1, le=7)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.top_level = float(2**config.bits - 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same. BPDA surrogate: the identity."""
        return with_surrogate(x, self._round, lambda y: y)

    def _round(self, x: Tensor) -> Tensor:
        return torch.round(x * self.top_level) / self.top_level
