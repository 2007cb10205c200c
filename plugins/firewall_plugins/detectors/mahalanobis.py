"""Distance of features to the classes' centres, in the metric of their common spread."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor

from firewall.stages import (
    API_VERSION,
    RAW,
    Detector,
    Evidence,
    FitReport,
    Needs,
    StageConfig,
    Tier,
)


class Mahalanobis(Detector):
    """Mahalanobis distance to the nearest class (Lee et al. 2018, arXiv:1807.03888).

    Of one tap, after a projection onto the leading directions of clean features. Every class that
    clean data shows has a centre; the spread is common to all of them and shrunk towards its
    diagonal. An attacker who knows the centres walks towards one of them.
    """

    api_version: ClassVar[int] = API_VERSION
    tier: ClassVar[Tier] = "cheap"

    class Config(StageConfig):
        """Settings."""

        #: Tap of the embedded classifier to read.
        tap: str = "penultimate"
        #: Leading directions that are kept.
        directions: int = Field(default=32, ge=1, le=4096)
        #: Share of the spread's diagonal that is mixed in.
        shrinkage: float = Field(default=0.1, ge=0, le=1)
        #: Centres at most, of the most frequent classes.
        centres: int = Field(default=256, ge=1, le=10_000)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.shift: Tensor
        self.whiten: Tensor
        self.centres: Tensor
        # What it knows before it has been fitted: one centre, and plain distance.
        self.register_buffer("shift", torch.zeros(1))
        self.register_buffer("whiten", torch.ones(1, 1))
        self.register_buffer("centres", torch.zeros(1, 1))
        self.fitted = False

    @property
    def needs(self) -> Needs:
        """The features of one tap."""
        return Needs(logits=True, features=frozenset({self.config.tap}))

    def forward(self, evidence: Evidence) -> Tensor:
        """Evidence to [N]: squared distance to the nearest centre, a dimension."""
        features = evidence.features[self.config.tap].flatten(1)
        if not self.fitted:
            return features.square().mean(dim=1)
        seen = (features - self.shift) @ self.whiten
        # |a - b|^2 = |a|^2 - 2 a.b + |b|^2: one product instead of a table of differences.
        apart = (
            seen.square().sum(dim=1, keepdim=True)
            - 2 * seen @ self.centres.T
            + self.centres.square().sum(dim=1)[None]
        )
        return apart.amin(dim=1).clamp_min(0.0) / self.centres.shape[1]

    def fit(self, data: Evidence, rng: Generator) -> FitReport:
        """Centres by the classifier's own answer, directions and spread of clean features."""
        features = data.features[self.config.tap].detach().flatten(1).double()
        label = data.logits[RAW].detach().argmax(dim=1)
        count = torch.bincount(label)
        kept = count.argsort(descending=True, stable=True)[: self.config.centres]
        kept = kept[count[kept] > 0]
        means = torch.stack([features[label == one].mean(dim=0) for one in kept])
        # Of each row the centre of its class; a row of a class that is not kept has its own mean.
        near = torch.stack([(label == one).double() for one in kept], dim=1)
        covered = near.sum(dim=1) > 0
        within = features[covered] - near[covered] @ means
        # Few rows of many classes leave little spread within: then the whole spread stands in.
        if len(within) < 2 * len(kept):
            within = features - features.mean(dim=0)
        shift = features.mean(dim=0)
        spread = within.T @ within / max(1, len(within) - 1)
        diagonal = torch.diag(torch.diagonal(spread))
        spread = (1 - self.config.shrinkage) * spread + self.config.shrinkage * diagonal
        spread = spread + 1e-6 * spread.diagonal().mean().clamp_min(1e-12) * torch.eye(len(spread))
        values, vectors = torch.linalg.eigh(spread)
        size = min(self.config.directions, len(values))
        values, vectors = values[-size:].clamp_min(1e-12), vectors[:, -size:]
        whiten = vectors / values.sqrt()[None]
        self.shift = shift.float()
        self.whiten = whiten.float()
        self.centres = ((means - shift) @ whiten).float()
        self.fitted = True
        return FitReport(
            rows=len(features), figures={"centres": float(len(kept)), "directions": float(size)}
        )
