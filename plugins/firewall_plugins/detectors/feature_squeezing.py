"""Feature squeezing."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from firewall.stages import API_VERSION, RAW, Detector, Evidence, Needs, StageConfig, Tier


class FeatureSqueezing(Detector):
    """Distance between the probabilities before and after squeezing, at the worst squeezer.

    Xu, Evans, Qi, "Feature Squeezing" (NDSS 2018, arXiv:1704.01155), with the L1 distance of the
    paper, in [0, 2], or the symmetric Kullback-Leibler divergence in nats, which still moves
    where both predictions are confident and agree on the class.
    """

    api_version: ClassVar[int] = API_VERSION
    tier: ClassVar[Tier] = "expensive"

    class Config(StageConfig):
        """Settings of the comparison."""

        #: Views that are the squeezers, by name.
        views: tuple[str, ...] = ("bit-depth",)
        distance: Literal["l1", "symmetric-kl"] = "l1"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.views = config.views
        self.distance = config.distance

    @property
    def needs(self) -> Needs:
        """Logits of the raw batch and of the squeezed views."""
        return Needs(logits=True, views=frozenset(self.views), all_views=not self.views)

    def forward(self, evidence: Evidence) -> Tensor:
        """Evidence to [N]."""
        raw = torch.log_softmax(evidence.logits[RAW], dim=1)
        distances: list[Tensor] = []
        for logits in evidence.view_logits(self.views):
            squeezed = torch.log_softmax(logits, dim=1)
            gap = raw.exp() - squeezed.exp()
            if self.distance == "l1":
                distances.append(gap.abs().sum(dim=1))
            else:
                distances.append((gap * (raw - squeezed)).sum(dim=1))
        return torch.stack(distances).amax(dim=0)
