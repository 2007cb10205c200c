"""Average of log-probabilities over views."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from firewall.stages import API_VERSION, RAW, Ensemble, Evidence, StageConfig


class LogAverage(Ensemble):
    """Renormalised geometric mean of the probabilities on all views.

    One view that gives a class almost no probability vetoes it, which is what a forged raw batch
    meets among its denoised views.
    """

    api_version: ClassVar[int] = API_VERSION

    class Config(StageConfig):
        """Settings of the average."""

        #: Whether the raw batch takes part beside the views.
        include_raw: bool = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.include_raw = config.include_raw

    def forward(self, evidence: Evidence) -> Tensor:
        """Evidence to [N, K] log-probabilities."""
        logits = evidence.view_logits(())
        if self.include_raw or not logits:
            logits = [evidence.logits[RAW], *logits]
        stacked = torch.log_softmax(torch.stack(logits), dim=2)
        return torch.log_softmax(stacked.mean(dim=0), dim=1)
