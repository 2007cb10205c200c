"""Majority of the views."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from firewall.stages import API_VERSION, RAW, Ensemble, Evidence, StageConfig, with_surrogate


class Majority(Ensemble):
    """Every view votes for its top class; ties go to the class with more probability.

    The log-probabilities are those of (votes + mean probability) / (views + 1): the vote decides,
    the mean probability orders what the vote leaves equal. BPDA surrogate of a vote: the
    probabilities of the view.
    """

    api_version: ClassVar[int] = API_VERSION

    class Config(StageConfig):
        """A majority has nothing to set."""

    def __init__(self, config: Config) -> None:
        super().__init__()

    def forward(self, evidence: Evidence) -> Tensor:
        """Evidence to [N, K] log-probabilities."""
        logits = torch.stack([evidence.logits[RAW], *evidence.view_logits(())])
        probabilities = torch.softmax(logits, dim=2)
        votes = with_surrogate(logits, _vote, lambda z: torch.softmax(z, dim=2)).sum(dim=0)
        mixed = (votes + probabilities.mean(dim=0)) / (logits.shape[0] + 1)
        # A floor keeps the logarithm finite; renormalise, so that each row's exp still sums to 1.
        return torch.log_softmax(torch.log(mixed.clamp_min(1e-30)), dim=1)


def _vote(logits: Tensor) -> Tensor:
    return F.one_hot(logits.argmax(dim=2), logits.shape[2]).to(logits.dtype)
