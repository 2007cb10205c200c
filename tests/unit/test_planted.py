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
    note: str | None = None

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


class TwoClasses(nn.Module):
    """Whether a digit is over 4, from a network of ten."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return torch.stack([logits[:, :5].logsumexp(1), logits[:, 5:].logsumexp(1)], dim=1)


def test_two_classes_are_attacked_with_a_loss_that_moves(digits: Digits, tmp_path: Path) -> None:
    network, x, y = digits
    request = Request("static", "linf", 0.15, steps=20, queries=100)
    two = (y[:48] > 4).long().numpy()
    target = Planted(TwoClasses(network), classes=2, labels=("low", "high"))
    result = evaluate(target, x[:48].numpy(), two, request, tmp_path).result
    assert result["warnings"] == []
    by_name = {one["name"]: one for one in result["attacks"]}
    for name in ("APGD-DLR", "APGD-T"):
        assert by_name[name]["loss"] == "margin"
        assert by_name[name]["raised_rate"] == 1.0
        assert by_name[name]["fooled_bare_rate"] >= by_name["APGD-CE"]["fooled_bare_rate"] - 0.05


def test_labels_of_another_data_set_are_the_first_warning(digits: Digits, tmp_path: Path) -> None:
    network, x, y = digits
    request = Request("static", "linf", 0.15, steps=5, queries=20)
    wrong = ((y[:48] + 3) % 10).numpy()
    result = evaluate(Planted(network), x[:48].numpy(), wrong, request, tmp_path).result
    assert "labels or preprocessing do not belong to this classifier" in result["warnings"][0]
    # What was wrong when clean was not fooled by anyone.
    assert all(one["fooled_bare_rate"] <= 1 for one in result["attacks"])
    assert result["clean"]["by_class"][0]["rows"] == int((wrong == 0).sum())
