"""From the look of forgeries to that of clean images, without pairs."""

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


class CycleGan(Denoiser):
    """A CycleGAN between forged and clean images, of which the way to clean ones is served (Zhu et
    al. 2017, arXiv:1703.10593).

    Forgeries and clean images are of different rows: nothing tells which belongs to which, as where
    forgeries were collected and their originals are not to be had. Where they are, `ape-gan` learns
    more of them. Before an attacker who knows it, it is one more layer.
    """

    api_version: ClassVar[int] = API_VERSION

    class Config(StageConfig):
        """Settings."""

        #: Weight of coming back to the image itself, by way of the other look.
        cycle: float = Field(default=10.0, ge=0, le=1e4)
        #: Of leaving alone what has the look already, as a share of `cycle`.
        identity: float = Field(default=0.5, ge=0, le=10)
        #: Channels.
        width: int = Field(default=16, ge=4, le=256)
        #: Passes over the lesson's images.
        epochs: int = Field(default=6, ge=1, le=1000)
        #: Images of a step, half of them forged.
        batch: int = Field(default=64, ge=2, le=4096)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.network = PerturbationNetwork(config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] in [0, 1] to the same."""
        cleaned: Tensor = x + self.network(x)
        return cleaned.clamp(0.0, 1.0)

    def learn(self, lesson: Lesson, rng: Generator) -> FitReport:
        """Play both games on forgeries of some rows and on others as they are."""
        self.train().requires_grad_(True)
        # Not served, so no part of this stage.
        back = PerturbationNetwork(self.config.width)
        clean_side, forged_side = Adversary(self.config.width), Adversary(self.config.width)
        adam = torch.optim.Adam([*self.parameters(), *back.parameters()], 1e-3, (0.5, 0.999))
        error = steps = 0.0
        for _ in range(self.config.epochs):
            error = steps = 0.0
            order = torch.randperm(len(lesson.x), generator=rng)
            for rows in torch.split(order, self.config.batch):
                if len(rows) < 2:
                    continue
                half = len(rows) // 2
                bad = forged(lesson, lesson.x[rows[:half]], lesson.label[rows[:half]], 1.0)
                clean = lesson.x[rows[half : 2 * half]]
                cleaned, perturbed = self._there(bad), clean + back(clean)
                cycle = F.l1_loss(cleaned + back(cleaned), bad)
                cycle = cycle + F.l1_loss(self._there(perturbed), clean)
                same = F.l1_loss(self._there(clean), clean) + F.l1_loss(bad + back(bad), bad)
                fooling = clean_side.fooled(cleaned) + forged_side.fooled(perturbed)
                total = fooling + self.config.cycle * (cycle + self.config.identity * same)
                adam.zero_grad()
                total.backward()  # type: ignore[no-untyped-call]
                adam.step()
                clean_side.learn(clean, cleaned)
                forged_side.learn(bad, perturbed)
                error, steps = error + float(cycle.detach()) / 2, steps + 1
        self.eval().requires_grad_(False)
        return FitReport(rows=len(lesson.x), figures={"cycle_error": error / max(steps, 1)})

    def _there(self, x: Tensor) -> Tensor:
        """Not clamped: a pixel at the edge would teach nothing."""
        made: Tensor = x + self.network(x)
        return made
