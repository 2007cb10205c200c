"""A generator that takes perturbations out, against a judge who knows clean images."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional as F

from firewall.stages import API_VERSION, RAW, Denoiser, FitReport, Lesson, StageConfig
from firewall_plugins.denoisers.perturbation_network import PatchJudge, PerturbationNetwork


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
        # Not served, so no part of this stage.
        judge = PatchJudge(self.config.width)
        own = torch.optim.Adam(self.parameters(), 2e-3)
        other = torch.optim.Adam(judge.parameters(), 2e-4, (0.5, 0.999))
        before = after = 0.0
        for _ in range(self.config.epochs):
            before = after = 0.0
            order = torch.randperm(len(lesson.x), generator=rng)
            for rows in torch.split(order, self.config.batch):
                x, label = lesson.x[rows], lesson.label[rows]
                forged = _forged(lesson, x, label, rng)
                # Clean images must pass as well.
                seen, wanted = torch.cat([forged, x]), torch.cat([x, x])
                # Not clamped: a pixel at the edge would teach nothing.
                made = seen + self.network(seen)
                distance = F.mse_loss(made, wanted)
                judge.requires_grad_(False)
                fooling = (judge(made) - 1.0).square().mean()
                own.zero_grad()
                (distance + self.config.adversarial * fooling).backward()
                own.step()
                judge.requires_grad_(True)
                told = (judge(x) - 1.0).square().mean() + judge(made.detach()).square().mean()
                other.zero_grad()
                told.backward()
                other.step()
                share = len(rows) / len(lesson.x)
                before += share * float(F.mse_loss(seen, wanted))
                after += share * float(distance.detach())
        self.eval().requires_grad_(False)
        figures = {"distance_of_leaving_it": before, "distance": after}
        return FitReport(rows=len(lesson.x), figures=figures)


def _forged(lesson: Lesson, x: Tensor, label: Tensor, rng: Generator) -> Tensor:
    def loss(at: Tensor) -> Tensor:
        return F.cross_entropy(lesson.look(at).logits[RAW], label, reduction="none")

    return lesson.forge(x, loss, 0.25 + 0.75 * float(torch.rand((), generator=rng)))
