"""Planted defences that flatter: both are found out, and both fall."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from firewall.attack.victim import BareVictim, Victim
from firewall.evaluation.request import Request
from firewall.evaluation.run import Evaluated, evaluate
from tests.unit.test_attacks import digits

__all__ = ["digits"]
Digits = tuple[nn.Module, Tensor, Tensor]


class Saturating(nn.Module):
    """Logits times a thousand: in float32 cross-entropy has no gradient left."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * 1000


class Random(nn.Module):
    """Looks at the image through a random shift and noise, anew each time."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        shift = int(torch.randint(-1, 2, ()))
        return self.inner((torch.roll(x, shift, -1) + 0.1 * torch.randn_like(x)).clamp(0, 1))


@dataclass(frozen=True)
class Planted:
    """A bare network as a target."""

    network: nn.Module
    name: str = "planted"
    digest: str = "0" * 64
    shape: tuple[int, int, int] = (1, 8, 8)
    classes: int = 10
    labels: tuple[str, ...] = tuple("0123456789")

    def victim(self, rate: float) -> Victim:
        return BareVictim(self.network)


def evaluated(
    network: nn.Module, digits: Digits, folder: Path, suite: str, **more: int
) -> Evaluated:
    _, x, y = digits
    torch.manual_seed(0)
    request = Request(suite, "linf", 0.15, steps=20, queries=100, **more)
    return evaluate(Planted(network), x[:48].numpy(), y[:48].numpy(), request, folder)


def test_an_honest_network_raises_no_flag(digits: Digits, tmp_path: Path) -> None:
    done = evaluated(digits[0], digits, tmp_path, "static")
    assert done.result["warnings"] == []


def test_a_saturating_softmax(digits: Digits, tmp_path: Path) -> None:
    honest = evaluated(digits[0], digits, tmp_path / "honest", "static").result
    done = evaluated(Saturating(digits[0]), digits, tmp_path / "masked", "static").result
    assert any(one.startswith("gradient masking: APGD") for one in done["warnings"])
    assert any(one.startswith("vanished gradients") for one in done["warnings"])
    # It fooled a weak attack only; what it hides is as broken as it was.
    (pgd,) = (one for one in done["attacks"] if one["name"].startswith("PGD"))
    assert pgd["robust_accuracy"] > 0.3
    assert done["worst_case"]["robust_accuracy"] == pytest.approx(
        honest["worst_case"]["robust_accuracy"], abs=0.03
    )


@pytest.mark.slow
def test_a_random_defence(digits: Digits, tmp_path: Path) -> None:
    done = evaluated(Random(digits[0]), digits, tmp_path, "static", draws=8).result
    assert done["effort"]["draws"] == 8
    assert any(one.startswith("random:") for one in done["warnings"])
    assert done["worst_case"]["robust_accuracy"] < 0.1
