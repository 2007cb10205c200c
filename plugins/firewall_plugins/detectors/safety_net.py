"""Quantised late activations, and a machine with a radial kernel that knows forged ones."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional as F

from firewall.stages import (
    API_VERSION,
    RAW,
    Detector,
    Evidence,
    FitReport,
    Lesson,
    Needs,
    StageConfig,
    Tier,
    with_surrogate,
)


class SafetyNet(Detector):
    """SafetyNet (Lu, Issaranon, Forsyth 2017, arXiv:1704.00103).

    Each feature becomes one of a few codes, split at quantiles of clean data; a support vector
    machine with a radial kernel tells codes of forgeries from those of clean images. Codes have no
    gradient: a sum of steep sigmoids stands in, and attackers use it.
    """

    api_version: ClassVar[int] = API_VERSION
    tier: ClassVar[Tier] = "cheap"

    class Config(StageConfig):
        """Settings."""

        #: Tap of the embedded classifier to read.
        tap: str = "penultimate"
        #: Codes a feature.
        codes: int = Field(default=4, ge=2, le=16)
        #: Features at most, those of the largest spread.
        features: int = Field(default=128, ge=1, le=4096)
        #: Images of each kind from which the machine learns.
        rows: int = Field(default=1000, ge=10, le=20_000)
        #: Its penalty for errors.
        penalty: float = Field(default=1.0, gt=0, le=1e4)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.chosen: Tensor
        self.splits: Tensor
        self.vectors: Tensor
        self.weights: Tensor
        self.offset: Tensor
        # What it knows before it has learnt: nothing; every row scores alike.
        self.register_buffer("chosen", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("splits", torch.zeros(config.codes - 1, 1))
        self.register_buffer("vectors", torch.zeros(1, 1))
        self.register_buffer("weights", torch.zeros(1))
        self.register_buffer("offset", torch.zeros(1))
        self.gamma = 1.0
        self.width = 1.0

    @property
    def needs(self) -> Needs:
        """The features of one tap."""
        return Needs(features=frozenset({self.config.tap}))

    def forward(self, evidence: Evidence) -> Tensor:
        """Evidence to [N]: the machine's decision value."""
        codes = self._codes(evidence.features[self.config.tap].flatten(1))
        apart = (
            codes.square().sum(dim=1, keepdim=True)
            - 2 * codes @ self.vectors.T
            + self.vectors.square().sum(dim=1)[None]
        )
        kernel = torch.exp(-self.gamma * apart.clamp_min(0.0))
        return (kernel * self.weights[None]).sum(dim=1) + self.offset

    def learn(self, lesson: Lesson, rng: Generator) -> FitReport:
        """Splits from clean features; the machine from codes of clean and forged ones."""
        from sklearn.svm import SVC

        rows = torch.randperm(len(lesson.x), generator=rng)[: self.config.rows]
        clean: list[Tensor] = []
        forged: list[Tensor] = []
        for part in torch.split(rows, 64):
            x, label = lesson.x[part], lesson.label[part]

            def loss(at: Tensor, label: Tensor = label) -> Tensor:
                logits = lesson.look(at).logits[RAW]
                return F.cross_entropy(logits, label, reduction="none")

            share = 0.25 + 0.75 * float(torch.rand((), generator=rng))
            attacked = lesson.forge(x, loss, share)
            with torch.no_grad():
                for images, kept in ((x, clean), (attacked, forged)):
                    kept.append(lesson.look(images).features[self.config.tap].flatten(1))
        seen = torch.cat(clean)
        order = seen.std(dim=0).argsort(descending=True, stable=True)
        self.chosen = order[: self.config.features].clone()
        shares = torch.linspace(0, 1, self.config.codes + 1)[1:-1]
        self.splits = torch.quantile(seen.index_select(1, self.chosen), shares, dim=0)
        self.width = float(seen.index_select(1, self.chosen).std(dim=0).mean().clamp_min(1e-6)) / 4
        with torch.no_grad():
            codes = torch.cat([self._codes(seen), self._codes(torch.cat(forged))])
        target = np.repeat([0, 1], len(seen))
        spread = float(codes.var(dim=0).sum().clamp_min(1e-6))
        self.gamma = 1.0 / (2.0 * spread)
        machine = SVC(C=self.config.penalty, kernel="rbf", gamma=self.gamma)
        machine.fit(codes.numpy(), target)
        self.vectors = torch.from_numpy(np.ascontiguousarray(machine.support_vectors_)).float()
        self.weights = torch.from_numpy(np.ascontiguousarray(machine.dual_coef_[0])).float()
        self.offset = torch.from_numpy(machine.intercept_).float()
        figures = {
            "support_vectors": float(len(self.vectors)),
            "training_accuracy": float(machine.score(codes.numpy(), target)),
        }
        return FitReport(rows=len(seen), figures=figures)

    def _codes(self, features: Tensor) -> Tensor:
        """[N, F] to codes [N, F'] in [0, 1]."""
        chosen = features.index_select(1, self.chosen)
        last = self.config.codes - 1

        def hard(v: Tensor) -> Tensor:
            return torch.stack([(v > split).float() for split in self.splits]).sum(dim=0) / last

        def soft(v: Tensor) -> Tensor:
            parts = [torch.sigmoid((v - split) / self.width) for split in self.splits]
            return torch.stack(parts).sum(dim=0) / last

        return with_surrogate(chosen, hard, soft)
