"""A law that nothing breaks proves nothing: each is shown a plugin that breaks it."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor

from firewall.stages import API_VERSION, Denoiser, Detector, Evidence, Needs, StageConfig, Tier
from firewall.testing import LAWS, Case


class _Denoiser(Denoiser):
    api_version: ClassVar[int] = API_VERSION
    Config = StageConfig

    def __init__(self, config: StageConfig) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


class _Detector(Detector):
    api_version: ClassVar[int] = API_VERSION
    tier: ClassVar[Tier] = "cheap"
    Config = StageConfig

    def __init__(self, config: StageConfig) -> None:
        super().__init__()

    @property
    def needs(self) -> Needs:
        return Needs()

    def forward(self, evidence: Evidence) -> Tensor:
        return evidence.raw.mean(dim=(1, 2, 3))


class OutOfRange(_Denoiser):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class Normalises(_Detector):
    def forward(self, evidence: Evidence) -> Tensor:
        return evidence.raw.mean(dim=(1, 2, 3)) / evidence.raw.mean()


class Ranks(_Detector):
    def forward(self, evidence: Evidence) -> Tensor:
        return torch.arange(len(evidence.raw), dtype=torch.float32) + evidence.raw.mean(
            dim=(1, 2, 3)
        )


class Mutates(_Denoiser):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(0.5)


class MutatesEvidence(_Detector):
    def forward(self, evidence: Evidence) -> Tensor:
        return evidence.logits["raw"].sub_(1).mean(dim=1)


class MasksMost(_Denoiser):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., :1], torch.round(x[..., 1:] * 7) / 7], dim=3)


class Random(_Denoiser):
    def forward(self, x: Tensor) -> Tensor:
        return (x + 0.01 * torch.rand_like(x)).clamp(0, 1)


class Divides(_Detector):
    def forward(self, evidence: Evidence) -> Tensor:
        return 1 / evidence.raw.mean(dim=(1, 2, 3))


class Masks(_Denoiser):
    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x * 7) / 7


class CountsRows(_Detector):
    def forward(self, evidence: Evidence) -> Tensor:
        # A number that was right when the graph was traced.
        rows = 2.0 if torch.compiler.is_exporting() else float(len(evidence.raw))
        return evidence.raw.mean(dim=(1, 2, 3)) * rows


class Forgets(_Denoiser):
    class Config(StageConfig):
        size: int = 1

        def model_dump_json(self, **kwargs: object) -> str:
            return '{"size": 2}'


class Loose(_Denoiser):
    class Config(BaseModel):
        pass


@pytest.mark.parametrize(
    ("law", "kind", "plugin"),
    [
        ("shape_and_range", "denoiser", OutOfRange),
        ("row_independence", "detector", Normalises),
        ("permutation_equivariance", "detector", Ranks),
        ("no_input_mutation", "denoiser", Mutates),
        ("no_input_mutation", "detector", MutatesEvidence),
        ("attackable", "denoiser", MasksMost),
        ("determinism", "denoiser", Random),
        ("finite_on_extremes", "detector", Divides),
        ("attackable", "denoiser", Masks),
        ("config_round_trip", "denoiser", Forgets),
        ("unknown_key_refused", "denoiser", Loose),
    ],
)
def test_a_law_catches_who_breaks_it(law: str, kind: str, plugin: type) -> None:
    with pytest.raises(AssertionError):
        LAWS[law](Case.of(kind, plugin))


def test_parity_catches_a_number_that_the_trace_froze() -> None:
    with pytest.raises(AssertionError, match="torch and ONNX at batch"):
        LAWS["onnx_parity"](Case.of("detector", CountsRows))
