"""Attacks and evaluations as a researcher calls them."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from firewall.attack import TorchClassifier, attack
from firewall.errors import ConfigError
from firewall.evaluation import evaluate
from firewall.testing import images
from tests.support.tiny import write_tiny_onnx

NAMES = ("fgsm", "bim", "pgd", "mi-fgsm", "apgd", "apgd-dlr", "apgd-t")


@pytest.fixture
def network() -> nn.Module:
    """With a batch norm and a dropout, whose state would show what touched them."""
    torch.manual_seed(3)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 5),
    )  # fmt: skip
    made(images(64, seed=2))
    return made.eval()


def predicted(classifier: TorchClassifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        return classifier(classifier.scaled(x)).argmax(dim=1)


def state(network: nn.Module) -> list[Any]:
    return [
        [one.training for one in network.modules()],
        [one.requires_grad for one in network.parameters()],
        [one.grad for one in network.parameters()],
        {key: value.clone() for key, value in network.state_dict().items()},
    ]


@pytest.mark.parametrize("name", NAMES)
def test_an_attack_stays_in_its_ball_and_leaves_the_network_alone(
    name: str, network: nn.Module
) -> None:
    classifier, x = TorchClassifier(network), images(8, seed=5)
    before = state(network)
    y = predicted(classifier, x)
    forged = attack(name, classifier, x, y, eps=0.1, steps=10)
    assert (forged - x).abs().max() <= 0.1 + 1e-6
    assert forged.min() >= 0
    assert forged.max() <= 1
    assert (predicted(classifier, forged) != y).float().mean() > 0.5
    after = state(network)
    assert before[:3] == after[:3]
    assert all(torch.equal(before[3][key], after[3][key]) for key in before[3])


def test_radius_and_images_are_in_the_units_of_the_bounds(network: nn.Module) -> None:
    """The same function, once for values to 1 and once for values to 255."""
    wide = nn.Sequential(_Scale(1 / 255), copy.deepcopy(network)).eval()
    small, large = TorchClassifier(network), TorchClassifier(wide, bounds=(0, 255))
    x = images(6, seed=6)
    y = predicted(small, x)
    one = attack("pgd", small, x, y, eps=8 / 255, steps=5)
    other = attack("pgd", large, x * 255, y, eps=8, steps=5)
    assert torch.allclose(one * 255, other, atol=0.05)
    with pytest.raises(ConfigError, match=r"eps: 8.*8/255 is 0.0314"):
        attack("pgd", small, x, y, eps=8)


class _Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_normalisation_is_the_classifiers(network: nn.Module) -> None:
    x = images(4)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    shape = (1, 3, 1, 1)
    by_hand = network((x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape))
    assert torch.allclose(TorchClassifier(network, mean=mean, std=std)(x), by_hand, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "magic"}, "attack: 'magic'; expected one of fgsm, bim"),
        ({"norm": "l7"}, "'l7'; expected linf or l2"),
        ({"eps": -1.0}, "eps: -1.0; expected a positive, finite radius"),
        ({"eps": float("nan")}, "eps: nan"),
        ({"steps": 0}, "steps: 0; expected 1 or more"),
        ({"x": images(4) * 255}, "the network's bounds are 0 to 1. Give images before norm"),
        ({"x": images(4) - 0.6}, "the network's bounds are 0 to 1"),
        ({"x": images(4)[0]}, r"expected floats [rows, C, H, W]"),
        ({"y": torch.full((4,), 5)}, "expected 4 classes from 0 to 4"),
        ({"y": torch.zeros(3).long()}, "expected 4 classes"),
    ],
)
def test_what_cannot_be_is_an_error(change: dict[str, Any], words: str, network: nn.Module) -> None:
    given: dict[str, Any] = {"name": "pgd", "x": images(4), "y": torch.zeros(4).long(), "eps": 0.1}
    given |= change
    with pytest.raises(ConfigError) as caught:
        attack(given.pop("name"), TorchClassifier(network), given.pop("x"), given.pop("y"), **given)
    assert words in str(caught.value)


def test_a_network_in_training_mode_is_refused(network: nn.Module) -> None:
    network[1].train()  # type: ignore[index]
    with pytest.raises(ConfigError, match="1 is in training mode"):
        TorchClassifier(network)


def test_networks_and_files_are_evaluated_alike(network: nn.Module, tmp_path: Path) -> None:
    x = images(8, seed=9)
    y = predicted(TorchClassifier(network), x)
    result = evaluate(TorchClassifier(network), x, y, eps=0.05, steps=5, queries=20)
    assert result["clean"]["accuracy"]["value"] == 1.0
    assert 0 <= result["worst_case"]["robust_accuracy"] <= 1
    net = write_tiny_onnx(tmp_path / "net.onnx")
    found = evaluate(net, x.numpy(), np.zeros(8, int), eps=0.05, steps=5, queries=20)
    assert found["target"]["name"] == "net"
    with pytest.raises(ConfigError, match="bounds are 0 to 1"):
        evaluate(TorchClassifier(network), x * 2, y, eps=0.05)


def test_the_pages_example_runs(network: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs/attacks.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    grey = nn.Sequential(_Repeat(), network).eval()
    x = images(6).mean(dim=1, keepdim=True)
    with torch.no_grad():
        labels = TorchClassifier(grey, mean=(0.5,), std=(0.25,))(x).argmax(dim=1)
    exec(block, {"network": grey, "x": x, "labels": labels})
    assert capsys.readouterr().out


class _Repeat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(1, 3, 1, 1)
