"""A detector that somebody wrote in an afternoon."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from firewall.stages import API_VERSION, Detector, Evidence, Needs, StageConfig, Tier


class Saturation(Detector):
    """How many pixel values lie close to 0 or 1, softly counted."""

    api_version: ClassVar[int] = API_VERSION
    tier: ClassVar[Tier] = "cheap"

    class Config(StageConfig):
        #: Distance from the ends at which a value counts a half.
        width: float = Field(default=0.05, gt=0, lt=0.5)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.width = config.width

    @property
    def needs(self) -> Needs:
        return Needs()

    def forward(self, evidence: Evidence) -> Tensor:
        distance = torch.minimum(evidence.raw, 1.0 - evidence.raw)
        return torch.exp(-distance / self.width).mean(dim=(1, 2, 3))
