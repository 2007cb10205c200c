"""Noise in the smoothest part of the image."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from firewall.stages import API_VERSION, Detector, Evidence, Needs, StageConfig, Tier


class NoiseFloor(Detector):
    """Mean high-pass energy of the smoothest block of pixels.

    Natural images have some smooth block; a perturbation that is spread over all pixels, as the
    fast gradient sign method's is, leaves none. The high pass is the noise estimator of Immerkaer,
    "Fast noise variance estimation" (1996), in units of pixel value. It reads nothing but the
    image.

    With `component = "chroma"` the noise is what the channels do not share: cameras interpolate
    colour and JPEG keeps it at half the resolution, so photographs have next to none of it, and a
    gradient treats every channel on its own. An attacker who spares smooth areas passes the one;
    one who perturbs all channels alike, or saves the forgery as JPEG, passes the other.
    """

    api_version: ClassVar[int] = API_VERSION
    tier: ClassVar[Tier] = "cheap"

    class Config(StageConfig):
        """Settings of the blocks."""

        #: Side of a block in pixels.
        block: int = Field(default=8, ge=4, le=64)
        #: Pixels from one sample of the high pass to the next; 2 costs a quarter of 1.
        stride: int = Field(default=2, ge=1, le=4)
        #: The whole high pass, or what is left of it without the mean of the channels.
        component: Literal["all", "chroma"] = "all"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.block = config.block
        self.stride = config.stride
        self.component = config.component
        second = torch.tensor([1.0, -2.0, 1.0])
        self.kernel: Tensor
        self.register_buffer("kernel", second.outer(second).view(1, 1, 3, 3))

    @property
    def needs(self) -> Needs:
        """The raw image, which every detector has."""
        return Needs()

    def forward(self, evidence: Evidence) -> Tensor:
        """Evidence to [N]."""
        x = evidence.raw
        channels = x.shape[1]
        if self.component == "chroma" and channels == 1:
            raise ValueError("noise-floor: images of one channel have no chroma")
        kernel = self.kernel.expand(channels, 1, 3, 3)
        high = F.conv2d(x, kernel, stride=self.stride, groups=channels)
        if self.component == "chroma":
            high = high - high.mean(dim=1, keepdim=True)
        energy = high.abs().mean(dim=1, keepdim=True)
        block = min(self.block // self.stride, energy.shape[2], energy.shape[3])
        return torch.amin(F.avg_pool2d(energy, block), dim=(1, 2, 3))
