"""An image at a fraction of its size, and back again by a network that knows such images."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional as F

from firewall.stages import API_VERSION, Denoiser, FitReport, Lesson, StageConfig
from firewall_plugins.denoisers.adversary import Adversary
from firewall_plugins.denoisers.perturbation_network import PerturbationNetwork, doubled


class SuperResolution(Denoiser):
    """Downscale, then super-resolve (SRGAN, Ledig et al. 2017, arXiv:1609.04802; as a defence,
    Mustafa et al. 2019, arXiv:1901.01677).

    Averages of blocks lose what is finer than they are, perturbations among it; the network draws
    what clean images have there. It learns from clean images alone. Before an attacker who knows
    it, it is one more layer.
    """

    api_version: ClassVar[int] = API_VERSION

    class Config(StageConfig):
        """Settings."""

        #: Sides are brought to this fraction.
        factor: Literal[2, 4] = 2
        #: Weight of the discriminator of patches beside 1 of the mean absolute distance.
        adversarial: float = Field(default=1e-2, ge=0, le=10)
        #: Channels.
        width: int = Field(default=16, ge=4, le=256)
        #: Passes over the lesson's images.
        epochs: int = Field(default=6, ge=1, le=1000)
        #: Images of a step.
        batch: int = Field(default=64, ge=1, le=4096)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.network = PerturbationNetwork(config.width)
        # Between two values of a doubled row, the mean: bilinear interpolation.
        row = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("kernel", (row[:, None] * row)[None, None], persistent=False)
        self.kernel: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] in [0, 1] to the same."""
        return self._drawn(x).clamp(0.0, 1.0)

    def enlarged(self, x: Tensor) -> Tensor:
        """What is left of an image: smaller, and interpolated."""
        shape = x.shape
        y = x.reshape(-1, 1, *shape[2:])
        sizes = [shape[2:]]
        for _ in range(int(math.log2(self.config.factor))):
            high, wide = y.shape[2], y.shape[3]
            # An odd side's last line counts twice.
            y = F.avg_pool2d(F.pad(y, (0, wide % 2, 0, high % 2), mode="replicate"), 2)
            sizes.append(y.shape[2:])
        for high, wide in reversed(sizes[:-1]):
            y = doubled(y, high, wide)
            y = F.conv2d(F.pad(y, (1, 1, 1, 1), mode="replicate"), self.kernel)
        return y.reshape(shape)

    def learn(self, lesson: Lesson, rng: Generator) -> FitReport:
        """Play the game on clean images."""
        self.train().requires_grad_(True)
        adversary = Adversary(self.config.width)
        adam = torch.optim.Adam(self.parameters(), 2e-3)
        plain = drawn = 0.0
        for _ in range(self.config.epochs):
            plain = drawn = 0.0
            order = torch.randperm(len(lesson.x), generator=rng)
            for rows in torch.split(order, self.config.batch):
                x = lesson.x[rows]
                made = self._drawn(x)
                distance = F.l1_loss(made, x)
                adam.zero_grad()
                loss = distance + self.config.adversarial * adversary.fooled(made)
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
                adversary.learn(x, made)
                share = len(rows) / len(lesson.x)
                with torch.no_grad():
                    plain += share * float(F.mse_loss(self.enlarged(x), x))
                    drawn += share * float(F.mse_loss(made.clamp(0.0, 1.0), x))
        self.eval().requires_grad_(False)
        figures = {"psnr_interpolated": _decibels(plain), "psnr": _decibels(drawn)}
        return FitReport(rows=len(lesson.x), figures=figures)

    def _drawn(self, x: Tensor) -> Tensor:
        """Not clamped: a pixel at the edge would teach nothing."""
        left = self.enlarged(x)
        made: Tensor = left + self.network(left)
        return made


def _decibels(error: float) -> float:
    """Peak signal-to-noise ratio of a mean squared error, of values in [0, 1]."""
    return -10.0 * math.log10(max(error, 1e-10))
