"""Norm of the classifier's own features."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Generator, Tensor

from firewall.stages import (
    API_VERSION,
    Detector,
    Evidence,
    FitReport,
    Needs,
    StageConfig,
    Tier,
)


class FeatureNorm(Detector):
    """How much stronger the tapped features are than those of clean images.

    Iterated attacks drive features outside the range that natural images excite; the statistic is
    the logarithm of their L2 norm, standardised by mean and deviation over clean data. It costs
    nothing beyond the classifier's own pass. It is one-sided and knows nothing of direction: an
    attacker who keeps the norm in range passes it.
    """

    api_version: ClassVar[int] = API_VERSION
    tier: ClassVar[Tier] = "cheap"

    class Config(StageConfig):
        """Settings of the tap."""

        #: Tap of the embedded classifier to read.
        tap: str = "penultimate"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.tap = config.tap
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    @property
    def needs(self) -> Needs:
        """The features of one tap."""
        return Needs(features=frozenset({self.tap}))

    def forward(self, evidence: Evidence) -> Tensor:
        """Evidence to [N]."""
        return (self._log_norm(evidence) - self.mean) / self.deviation

    def fit(self, data: Evidence, rng: Generator) -> FitReport:
        """Mean and standard deviation of the logarithm over clean images."""
        values = self._log_norm(data).detach()
        self.mean.copy_(values.mean())
        self.deviation.copy_(values.std().clamp_min(1e-3))
        return FitReport(
            rows=len(values),
            figures={"mean": float(self.mean), "deviation": float(self.deviation)},
        )

    def _log_norm(self, evidence: Evidence) -> Tensor:
        squares = evidence.features[self.tap].flatten(1).square().sum(dim=1)
        return 0.5 * torch.log(squares + 1e-12)
