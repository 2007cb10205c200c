"""Attacks that see answers only, each question counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from firewall.attack.apgd import AutoPGD
from firewall.attack.estimate import Directions, EstimatedGradient
from firewall.attack.norms import Linf
from firewall.attack.oracle import Oracle, Replies
from firewall.attack.square import Square
from tests.unit.test_attacks import digits

__all__ = ["digits"]
Digits = tuple[nn.Module, Tensor, Tensor]


def asked(network: nn.Module) -> list[int]:
    """Forward passes of single rows, counted behind the oracle's back."""
    count: list[int] = []
    network.register_forward_hook(lambda _, inputs, __: count.append(len(inputs[0])))
    return count


def fooled(network: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((network(x).argmax(1) != y).float().mean())


def test_square_needs_no_gradient_and_falls_short_of_the_white_box(digits: Digits) -> None:
    network, x, y = digits
    x, y, radius = x[:60], y[:60], 0.15
    oracle = Oracle(lambda point: Replies.of(network(point)), len(x), 400)
    with torch.no_grad():
        found = Square(radius, 400)(oracle, x, y)
    assert Linf().size(found - x).max() <= radius + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    black, white = fooled(network, found, y), fooled(network, AutoPGD(radius, 40)(network, x, y), y)
    assert 0.3 < black <= white + 0.02


@pytest.mark.parametrize("directions", ["gaussian", "signs", "coordinates"])
def test_an_estimated_gradient_climbs(directions: Directions, digits: Digits) -> None:
    network, x, y = digits
    x, y, radius = x[:40], y[:40], 0.2
    oracle = Oracle(lambda point: Replies.of(network(point)), len(x), 2000)
    attack = EstimatedGradient(radius, steps=12, pairs=60, directions=directions)
    with torch.no_grad():
        found = attack(oracle, x, y)
    assert Linf().size(found - x).max() <= radius + 1e-6
    noise = x + radius * (torch.randint(0, 2, x.shape) * 2 - 1)
    assert fooled(network, found, y) > fooled(network, noise.clamp(0, 1), y) + 0.2


def test_every_question_is_counted_and_none_is_beyond_the_budget(digits: Digits) -> None:
    network, x, y = digits
    x, y = x[:10], y[:10]
    for attack in (Square(0.02, 500), EstimatedGradient(0.02, steps=50, pairs=7)):
        count = asked(network)
        oracle = Oracle(lambda point: Replies.of(network(point)), len(x), 73)
        with torch.no_grad():
            attack(oracle, x, y)
        assert sum(count) == int(oracle.queries.sum())
        assert oracle.queries.max() <= 73
        network._forward_hooks.clear()


def test_a_refusal_counts_and_ends_the_trail_where_the_service_blocks(digits: Digits) -> None:
    network, x, y = digits
    x, y = x[:20], y[:20]

    def guarded(point: Tensor) -> Replies:
        return Replies(network(point), torch.ones(len(point), dtype=torch.bool))

    for attack in (Square(0.3, 50), EstimatedGradient(0.3, steps=5, pairs=3)):
        for ends in (False, True):
            oracle = Oracle(guarded, len(x), 50, ends_at_refusal=ends)
            with torch.no_grad():
                found = attack(oracle, x, y)
            # Nothing was ever answered, so there is nothing to show.
            assert torch.equal(found, x)
            assert torch.equal(oracle.refusals, oracle.queries)
            assert (oracle.queries.max() == 1) == ends


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="budget: 0"):
        Oracle(Replies.of, 1, 0)
