"""Distance of features to those of known clean images."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from firewall.stages import API_VERSION, Detector, Evidence, FitReport, Needs, StageConfig, Tier


class NearestNeighbours(Detector):
    """How far a row's features lie from a memory of clean ones.

    `distance` is that to the k-th nearest (Sun et al. 2022, arXiv:2204.06507); `dimension` is the
    local intrinsic dimensionality by maximum likelihood over the k nearest (Ma et al. 2018,
    arXiv:1801.02613). Features are brought to length one first. The memory is part of the bundle,
    and whoever holds it can walk towards it.
    """

    api_version: ClassVar[int] = API_VERSION
    tier: ClassVar[Tier] = "cheap"

    class Config(StageConfig):
        """Settings."""

        #: Tap of the embedded classifier to read.
        tap: str = "penultimate"
        #: Neighbours.
        k: int = Field(default=10, ge=2, le=100)
        #: What is told of them.
        statistic: Literal["distance", "dimension"] = "distance"
        #: Clean rows that are remembered at most.
        memory: int = Field(default=1000, ge=10, le=20_000)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.memory: Tensor
        # What it knows before it has been fitted: nothing but the origin.
        self.register_buffer("memory", torch.zeros(config.k, 1))
        self.fitted = False

    @property
    def needs(self) -> Needs:
        """The features of one tap."""
        return Needs(features=frozenset({self.config.tap}))

    def forward(self, evidence: Evidence) -> Tensor:
        """Evidence to [N]."""
        seen = _unit(evidence.features[self.config.tap].flatten(1))
        if not self.fitted:
            return 1.0 - seen.square().sum(dim=1)
        # Both have length one: squared distance is 2 - 2 a.b.
        apart = (2.0 - 2.0 * seen @ self.memory.T).clamp_min(1e-6).sqrt()
        near = apart.topk(self.config.k, dim=1, largest=False).values
        last = near[:, -1]
        if self.config.statistic == "distance":
            return last
        ratios = torch.log(near[:, :-1] / last[:, None]).clamp_max(-1e-4)
        return -1.0 / ratios.mean(dim=1)

    def fit(self, data: Evidence, rng: Generator) -> FitReport:
        """Remember clean features, a random choice where there are too many."""
        features = _unit(data.features[self.config.tap].detach().flatten(1))
        order = torch.randperm(len(features), generator=rng)[: self.config.memory]
        memory = features[order]
        if len(memory) < self.config.k:
            # Fewer rows than neighbours: each counts several times.
            memory = memory.repeat(-(-self.config.k // len(memory)), 1)
        self.memory = memory.clone()
        self.fitted = True
        return FitReport(rows=len(features), figures={"memory": float(len(memory))})


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + 1e-6)
