"""Several networks, averaged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from firewall.stages import API_VERSION, RAW, Ensemble, Evidence, StageConfig


class Mixture(Ensemble):
    """Weighted mean of the probabilities of the classifier and of the recipe's members.

    With about five members trained apart it is the ensemble of the literature; with one robust
    member beside a standard classifier the mixture of accuracy and robustness (Bai et al. 2024,
    arXiv:2301.12554). It answers the rows that the cheap tier hands on.
    """

    api_version: ClassVar[int] = API_VERSION

    class Config(StageConfig):
        """Settings."""

        #: Names of members in the recipe.
        members: tuple[str, ...] = ()
        #: Of each member beside the classifier, whose own is 1; equal when left out.
        weights: tuple[float, ...] = ()
        #: Of the classifier itself.
        own: float = Field(default=1.0, ge=0, le=1e3)

        @model_validator(mode="after")
        def _fits(self) -> Self:
            if self.weights and len(self.weights) != len(self.members):
                raise ValueError(
                    f"weights has {len(self.weights)} entries for {len(self.members)} members"
                )
            if any(weight < 0 for weight in self.weights):
                raise ValueError("a weight is negative")
            if not self.own and not sum(self.weights or (1.0,) * len(self.members)):
                raise ValueError("all weights are 0")
            return self

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.networks = nn.ModuleList()
        weights = (config.own, *(config.weights or (1.0,) * len(config.members)))
        self.shares = [weight / sum(weights) for weight in weights]

    @property
    def members(self) -> tuple[str, ...]:
        """As configured."""
        return self.config.members

    def adopt(self, networks: Mapping[str, nn.Module]) -> None:
        """Take the members."""
        self.networks = nn.ModuleList(networks[name] for name in self.config.members)

    def forward(self, evidence: Evidence) -> Tensor:
        """Evidence to [N, K] log-probabilities."""
        every = [evidence.logits[RAW], *(network(evidence.raw) for network in self.networks)]
        # Before it has members it is the classifier alone.
        shares = self.shares if len(every) == len(self.shares) else [1.0]
        logs = [
            one.log_softmax(dim=1) + torch.log(torch.tensor(share))
            for one, share in zip(every, shares, strict=True)
            if share > 0
        ]
        return torch.logsumexp(torch.stack(logs), dim=0)
