"""A generator that takes perturbations out, against a judge who knows clean images."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional as F

from firewall.stages import API_VERSION, Denoiser, FitReport, Lesson, StageConfig
from firewall_plugins.denoisers.adversary import Adversary
from firewall_plugins.denoisers.forgeries import forged
from firewall_plugins.denoisers.perturbation_network import PerturbationNetwork


class ApeGan(Denoiser):
    """Forgeries to images that a discriminator of patches takes for clean ones (after APE-GAN, Jin
    et al. 2019, arXiv:1707.05474).

    The distance to the clean image says what is to be there; the discriminator, that nothing of
    the perturbation may be seen. Before an attacker who knows it, it is one more layer: with its
    white-box evaluation APE-GAN fell (Carlini and Wagner 2017, arXiv:1711.08478).
    """

    api_version: ClassVar[int] = API_VERSION

    class Config(StageConfig):
        """Settings."""

        #: Weight of the discriminator beside 1 of the squared distance.
        adversarial: float = Field(default=1e-3, ge=0, le=10)
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

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] in [0, 1] to the same."""
        cleaned: Tensor = x + self.network(x)
        return cleaned.clamp(0.0, 1.0)

    def learn(self, lesson: Lesson, rng: Generator) -> FitReport:
        """Play the game on pairs of forged and clean images."""
        self.train().requires_grad_(True)
        adversary = Adversary(self.config.width)
        adam = torch.optim.Adam(self.parameters(), 2e-3)
        before = after = 0.0
        for _ in range(self.config.epochs):
            before = after = 0.0
            order = torch.randperm(len(lesson.x), generator=rng)
            for rows in torch.split(order, self.config.batch):
                x, label = lesson.x[rows], lesson.label[rows]
                share = 0.25 + 0.75 * float(torch.rand((), generator=rng))
                # Clean images must pass as well.
                seen = torch.cat([forged(lesson, x, label, share), x])
                wanted = torch.cat([x, x])
                # Not clamped: a pixel at the edge would teach nothing.
                made = seen + self.network(seen)
                distance = F.mse_loss(made, wanted)
                adam.zero_grad()
                loss = distance + self.config.adversarial * adversary.fooled(made)
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
                adversary.learn(x, made)
                part = len(rows) / len(lesson.x)
                before += part * float(F.mse_loss(seen, wanted))
                after += part * float(distance.detach())
        self.eval().requires_grad_(False)
        figures = {"distance_of_leaving_it": before, "distance": after}
        return FitReport(rows=len(lesson.x), figures=figures)
