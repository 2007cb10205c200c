"""Attacks against what they must break, and against what they must not leave."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from firewall.attack.adaptive import Adaptive, Combination, Evasion, Hinges
from firewall.attack.apgd import AutoPGD, TargetedAutoPGD
from firewall.attack.gradient import GradientAttack, fgsm, pgd
from firewall.attack.losses import aimed_dlr, aimed_margin, cross_entropy, dlr, margin
from firewall.attack.norms import L2, Linf, Norm
from firewall.attack.served_guard import ServedGuard
from firewall.bundle.signing import Signer
from firewall.bundle.spec import InputSpec
from firewall.bundle.store import Bundle, open_bundle
from firewall.evaluation.target import BundleTarget
from firewall.screening.calibration import Calibration
from firewall.screening.load import load_guard
from firewall.screening.policy import Policy
from firewall.screening.verdict import Verdict
from firewall.testing import images
from tests.support.tiny import build_tiny

Attack = Callable[..., Tensor]
NORMS: tuple[Norm, ...] = (Linf(), L2())


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network trained on scikit-learn's digits; 200 test images that it gets right."""
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(data.target, dtype=torch.int64)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(150):
        rows = torch.randint(0, 1400, (128,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
        optimiser.step()
    network.eval().requires_grad_(False)
    right = (network(x[1400:]).argmax(1) == y[1400:]).nonzero()[:200, 0]
    assert len(right) == 200
    return network, x[1400:][right], y[1400:][right]


def attacks(radius: float, norm: Norm) -> dict[str, Attack]:
    return {
        "pgd": pgd(radius, 20, norm=norm),
        "momentum": GradientAttack(radius, 20, radius / 8, norm=norm, momentum=1.0),
        "apgd-ce": AutoPGD(radius, 30, norm),
        "apgd-dlr": AutoPGD(radius, 30, norm, loss=dlr),
        "apgd-t": TargetedAutoPGD(radius, 20, norm, targets=3),
        "apgd-ce, to the end": AutoPGD(radius, 30, norm, stops=False),
        "apgd-t, to the end": TargetedAutoPGD(radius, 20, norm, targets=3, stops=False),
    }


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.name)
@pytest.mark.parametrize("name", attacks(1.0, Linf()))
def test_attacks_stay_in_the_ball_and_break_an_undefended_network(
    name: str, norm: Norm, digits: tuple[nn.Module, Tensor, Tensor]
) -> None:
    network, x, y = digits
    success = []
    for radius in {"linf": (0.05, 0.5), "l2": (0.3, 5.0)}[norm.name]:
        found = attacks(radius, norm)[name](network, x, y)
        assert norm.size(found - x).max() <= radius * (1 + 1e-4)
        assert found.min() >= 0
        assert found.max() <= 1
        success.append(float((network(found).argmax(1) != y).float().mean()))
    assert success[0] < success[1]
    # Nothing undefended stands at a radius where every class is within reach.
    assert success[1] == 1.0


def test_fgsm_is_weaker_than_pgd_and_pgd_than_apgd(
    digits: tuple[nn.Module, Tensor, Tensor],
) -> None:
    network, x, y = digits

    def success(found: Tensor) -> float:
        return float((network(found).argmax(1) != y).float().mean())

    radius = 0.1
    one, many = success(fgsm(radius)(network, x, y)), success(pgd(radius, 20)(network, x, y))
    auto = success(TargetedAutoPGD(radius, 30)(network, x, y))
    assert one <= many <= auto + 0.01


def test_apgd_that_goes_on_breaks_the_same_rows_and_is_louder(
    digits: tuple[nn.Module, Tensor, Tensor],
) -> None:
    """As AutoAttack's own; a guard has to see the difference, and no robust accuracy changes."""
    network, x, y = digits
    soon = AutoPGD(0.3, 20)(network, x, y)
    late = AutoPGD(0.3, 20, stops=False)(network, x, y)
    with torch.no_grad():
        broken = [network(found).argmax(dim=1) != y for found in (soon, late)]
    assert torch.equal(*broken)
    sizes = [(found - x)[broken[0]].abs().mean() for found in (soon, late)]
    assert sizes[1] > sizes[0]


def test_dlr_sees_through_a_saturating_softmax(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    """Logits times 1000: cross-entropy has no gradient left in float32, DLR does not notice."""
    network, x, y = digits

    def masked(point: Tensor) -> Tensor:
        logits: Tensor = network(point) * 1000
        return logits

    plain = AutoPGD(0.1, 30, loss=cross_entropy)(masked, x, y)
    ratio = AutoPGD(0.1, 30, loss=dlr)(masked, x, y)
    bare = AutoPGD(0.1, 30, loss=dlr)(network, x, y)
    fooled = [float((network(one).argmax(1) != y).float().mean()) for one in (plain, ratio, bare)]
    assert fooled[0] < fooled[1] - 0.1
    assert fooled[1] == pytest.approx(fooled[2], abs=0.02)


def test_an_aimed_attack_reaches_its_target(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    network, x, y = digits
    target = (y + 1) % 10
    found = GradientAttack(0.5, 40, 0.05)(network, x, target, aimed=True)
    assert (network(found).argmax(1) == target).float().mean() > 0.95


def test_a_rows_result_does_not_depend_on_its_neighbours(
    digits: tuple[nn.Module, Tensor, Tensor],
) -> None:
    network, x, y = digits
    attack = GradientAttack(0.1, 10, 0.02)
    assert torch.allclose(attack(network, x[:3], y[:3]), attack(network, x, y)[:3], atol=1e-6)


def test_restarts_only_help(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    network, x, y = digits
    fooled = [
        int((network(pgd(0.08, 5, restarts=n)(network, x, y, seed=3)).argmax(1) != y).sum())
        for n in (1, 4)
    ]
    assert fooled[1] >= fooled[0]


def test_losses_are_their_definitions() -> None:
    logits = torch.tensor([[4.0, 1.0, 3.0, 0.0]])
    label = torch.tensor([0])
    assert margin(logits, label).item() == pytest.approx(-1.0)
    assert aimed_margin(logits, label).item() == pytest.approx(1.0)
    assert dlr(logits, label).item() == pytest.approx(-(4 - 3) / (4 - 1))
    # (target - label) over first less the mean of third and fourth.
    assert aimed_dlr(torch.tensor([2]))(logits, label).item() == pytest.approx(
        (3 - 4) / (4 - 0.5 * (1 + 0))
    )
    assert torch.allclose(dlr(logits * 100 + 7, label), dlr(logits, label))


def test_the_linear_lesson() -> None:
    """The lecture's six dimensions: 0.2 w takes the answer from -4 to 1.6.

    It moves no value by more than 0.6; the sign, at that size, takes it to 3.2.
    """
    w = torch.tensor([1.0, 3, -1, 2, 2, 3])
    x = torch.tensor([1.0, -1, 2, 0, 3, -2])
    assert float(w @ x) == -4
    assert float(w @ (x + 0.2 * w)) == pytest.approx(1.6, abs=1e-5)
    assert float(w @ (x + 0.6 * Linf().direction(w))) == pytest.approx(3.2, abs=1e-5)


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.name)
def test_norms(norm: Norm) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(50, 3, 4, 4)
    start = norm.start(x, 0.3, generator)
    assert norm.size(start).max() <= 0.3 + 1e-6
    far = torch.randn(x.shape, generator=generator)
    near = norm.project(far, 0.3)
    assert torch.allclose(norm.size(near), torch.full((50,), 0.3), atol=1e-5)
    assert torch.allclose(norm.project(near, 0.3), near)
    # The steepest step of length one: no other raises a linear loss more.
    gradient = torch.randn(x.shape, generator=generator)
    best = (norm.direction(gradient) * gradient).flatten(1).sum(1)
    other = norm.project(torch.randn(x.shape, generator=generator) * 9, 1.0)
    assert torch.allclose(norm.size(norm.direction(gradient)), torch.ones(50), atol=1e-5)
    assert (best >= (other * gradient).flatten(1).sum(1)).all()


@pytest.mark.parametrize("combination", ["weighted", "orthogonal"])
def test_the_adaptive_attacker_passes_where_the_oblivious_one_is_refused(
    combination: Combination, tiny: Bundle
) -> None:
    calibration = Calibration.from_json(tiny.files["calibration.json"])
    guard = ServedGuard.of(tiny, calibration)
    live = load_guard(tiny, Policy(false_positive_rate=0.05))

    def through(x: Tensor) -> np.ndarray:
        answer = live.screen(x.numpy(), [live.plan("")] * len(x))
        accepted = [one.verdict is Verdict.ACCEPT for one in answer.decisions]
        return np.array(accepted) & (answer.outputs.argmax(1) != label.numpy())

    x = images(40, seed=70)
    with torch.no_grad():
        label = guard.classify(x).argmax(1)
    radius = 0.1
    oblivious = through(pgd(radius, 20)(guard.classify, x, label))
    evasion = Evasion.of(guard, calibration.cascade(0.05), "cheap")
    attack = Adaptive(radius, steps=60, combination=combination)
    found = attack(guard, x, label, evasion)
    assert Linf().size(found - x).max() <= radius + 1e-5
    assert through(found).mean() > oblivious.mean()
    assert through(found).mean() > 0.5


def test_what_is_sent_in_eight_bits_stays_within_the_radius(
    tiny: Bundle, signer: Signer, tmp_path: Path
) -> None:
    spec = InputSpec(channels=3, height=32, width=32, datatype="UINT8", high=255)
    path = build_tiny(tmp_path / "bytes", signer, input_spec=spec)
    sent = BundleTarget(open_bundle(path, {signer.public})).victim(0.05)
    clean = (images(4, seed=1) * 255).round() / 255
    radius = 6.6 / 255
    moved = (clean + radius * torch.sign(torch.randn(clean.shape))).clamp(0, 1)
    found = sent.representable(moved, clean)
    steps = 255 * (found - clean)
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    # Six steps of 1/255, not seven; and whole ones stay what they are.
    assert steps.abs().max().round() == 6
    assert torch.equal(sent.representable(found, clean), found)
    floats = BundleTarget(tiny).victim(0.05)
    assert torch.equal(floats.representable(moved, clean), moved)


def test_the_adaptive_attacker_knows_what_each_class_lets_through(tiny: Bundle) -> None:
    """Where the promise is by class, so are the ceilings, and the one aimed for counts."""
    plain = Calibration.from_json(tiny.files["calibration.json"])
    rank = np.argsort(np.argsort(plain.part_a[:, 0]))
    said_a = (rank >= len(rank) // 2).astype(np.int64)
    said_b = (plain.part_b[:, 0] >= np.median(plain.part_b[:, 0])).astype(np.int64)
    calibration = dataclasses.replace(plain, said_a=said_a, said_b=said_b)
    guard = ServedGuard.of(tiny, calibration)
    evasion = Evasion.of(guard, calibration.cascade(0.05), "both")
    hinges = evasion.excess
    assert isinstance(hinges, Hinges)
    low, high = hinges.ceilings[0], hinges.ceilings[1]
    assert (low != high).any()
    x = images(60, seed=71)
    with torch.no_grad():
        seen = guard(x)
    first, second = seen.log_probabilities.topk(2, dim=1).indices.T
    attack = Adaptive(0.1)
    _, excess = attack._objective(guard, x, first, evasion)
    over = (seen.statistics - hinges.ceilings[second.clamp_max(2)]) / hinges.scales
    assert torch.allclose(excess, torch.relu(over).sum(dim=1), atol=1e-5)
