"""Consistency of the predictions across views."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from firewall.stages import API_VERSION, RAW, Detector, Evidence, Needs, StageConfig, Tier


class ViewConsistency(Detector):
    """How far the logits of a view point away from the raw logits, at the worst view.

    The statistic is max over views of 1 - r, with r the Pearson correlation of the two logit
    vectors, in [0, 2]. Correlation reads the whole vector: it moves long before the top class
    does, and it does not saturate where softmax does, which is why it separates a confident
    forgery from a confident clean image better than a distance of probabilities.
    """

    api_version: ClassVar[int] = API_VERSION
    tier: ClassVar[Tier] = "expensive"

    class Config(StageConfig):
        """Settings of the comparison."""

        #: Views to compare with the raw batch; empty means every view of the guard.
        views: tuple[str, ...] = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.views = config.views

    @property
    def needs(self) -> Needs:
        """Logits of the raw batch and of the views."""
        return Needs(logits=True, views=frozenset(self.views), all_views=not self.views)

    def forward(self, evidence: Evidence) -> Tensor:
        """Evidence to [N]."""
        raw = _unit(evidence.logits[RAW])
        distances = [
            1.0 - (raw * _unit(logits)).sum(dim=1) for logits in evidence.view_logits(self.views)
        ]
        return torch.stack(distances).amax(dim=0)


def _unit(logits: Tensor) -> Tensor:
    return F.normalize(logits - logits.mean(dim=1, keepdim=True), dim=1, eps=1e-6)
