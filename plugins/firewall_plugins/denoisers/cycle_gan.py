"""From the look of forgeries to that of clean images, without pairs."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional as F

from firewall.stages import API_VERSION, RAW, Denoiser, FitReport, Lesson, StageConfig
from firewall_plugins.denoisers.perturbation_network import PatchJudge, PerturbationNetwork


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
        judges = [PatchJudge(self.config.width) for _ in range(2)]
        own = torch.optim.Adam([*self.parameters(), *back.parameters()], 1e-3, (0.5, 0.999))
        other = torch.optim.Adam(
            [one for judge in judges for one in judge.parameters()], 2e-4, (0.5, 0.999)
        )
        error = steps = 0.0
        for _ in range(self.config.epochs):
            error = steps = 0.0
            order = torch.randperm(len(lesson.x), generator=rng)
            for rows in torch.split(order, self.config.batch):
                if len(rows) < 2:
                    continue
                half = len(rows) // 2
                forged = _forged(lesson, lesson.x[rows[:half]], lesson.label[rows[:half]])
                clean = lesson.x[rows[half : 2 * half]]
                cleaned, perturbed = self._there(forged), clean + back(clean)
                cycle = F.l1_loss(cleaned + back(cleaned), forged) + F.l1_loss(
                    self._there(perturbed), clean
                )
                same = F.l1_loss(self._there(clean), clean) + F.l1_loss(
                    forged + back(forged), forged
                )
                pairs = ((judges[0], clean, cleaned), (judges[1], forged, perturbed))
                fooling = forged.new_zeros(())
                for judge, _, made in pairs:
                    judge.requires_grad_(False)
                    fooling = fooling + (judge(made) - 1.0).square().mean()
                own.zero_grad()
                (fooling + self.config.cycle * (cycle + self.config.identity * same)).backward()  # type: ignore[no-untyped-call]
                own.step()
                told = forged.new_zeros(())
                for judge, real, made in pairs:
                    judge.requires_grad_(True)
                    told = told + (judge(real) - 1.0).square().mean()
                    told = told + judge(made.detach()).square().mean()
                other.zero_grad()
                told.backward()  # type: ignore[no-untyped-call]
                other.step()
                error, steps = error + float(cycle.detach()) / 2, steps + 1
        self.eval().requires_grad_(False)
        return FitReport(rows=len(lesson.x), figures={"cycle_error": error / max(steps, 1)})

    def _there(self, x: Tensor) -> Tensor:
        """Not clamped: a pixel at the edge would teach nothing."""
        made: Tensor = x + self.network(x)
        return made


def _forged(lesson: Lesson, x: Tensor, label: Tensor) -> Tensor:
    def loss(at: Tensor) -> Tensor:
        return F.cross_entropy(lesson.look(at).logits[RAW], label, reduction="none")

    return lesson.forge(x, loss, 1.0)
