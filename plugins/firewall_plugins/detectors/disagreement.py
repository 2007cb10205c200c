"""How far the served classifier and a robust one are apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from firewall.stages import API_VERSION, RAW, Detector, Evidence, Needs, StageConfig, Tier


class Disagreement(Detector):
    """Cross-entropy of a robust guard model at the class that is served.

    What fools the classifier and not the guard model stands out. An attacker has to fool both, and
    into the same class; how hard that is, the guard model's own robustness decides.
    """

    api_version: ClassVar[int] = API_VERSION
    tier: ClassVar[Tier] = "cheap"

    class Config(StageConfig):
        """Settings."""

        #: Member of the recipe that is the guard model.
        member: str = Field(default="robust", min_length=1)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.guard_model: nn.Module | None = None

    @property
    def members(self) -> tuple[str, ...]:
        """The guard model."""
        return (self.config.member,)

    def adopt(self, networks: Mapping[str, nn.Module]) -> None:
        """Take the guard model."""
        self.guard_model = networks[self.config.member]

    @property
    def needs(self) -> Needs:
        """The classifier's answer."""
        return Needs(logits=True)

    def forward(self, evidence: Evidence) -> Tensor:
        """Evidence to [N]: -log of the guard model's probability of the served class."""
        logits = evidence.logits[RAW]
        # On its own it has nobody to disagree with but the classifier itself.
        theirs = logits if self.guard_model is None else self.guard_model(evidence.raw)
        served = logits.argmax(dim=1, keepdim=True)
        statistic: Tensor = -theirs.log_softmax(dim=1).gather(1, served)[:, 0]
        return statistic
