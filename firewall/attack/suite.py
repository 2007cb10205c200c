"""The attacks of an evaluation, by what their attacker knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from firewall.attack.adaptive import Adaptive, Combination, Evasion, Way
from firewall.attack.apgd import AutoPGD, TargetedAutoPGD
from firewall.attack.estimate import EstimatedGradient
from firewall.attack.gradient import GradientAttack, pgd
from firewall.attack.losses import dlr
from firewall.attack.norms import Norm
from firewall.attack.oracle import Oracle, Replies
from firewall.attack.served_guard import ServedGuard
from firewall.attack.square import Square
from firewall.errors import ConfigError
from firewall.guard.calibration import Cascade
from firewall.guard.compiled import log_softmax
from firewall.guard.live import LiveGuard
from firewall.guard.verdict import Verdict

Knowledge = Literal["oblivious", "black-box", "adaptive"]
#: The names by which suites are asked for.
SUITES = ("static", "black-box", "adaptive", "full")


@dataclass(frozen=True)
class Setting:
    """What is attacked, and how far.

    Attributes:
        guard: differentiable, as served.
        live: the same, deciding.
        cascade: its decision rule.
        to_wire: [N, C, H, W] in [0, 1] to what a client would send.
        norm: the ball.
        radius: of the ball, in units of the image batch.

    """

    guard: ServedGuard
    live: LiveGuard
    cascade: Cascade
    to_wire: Callable[[Tensor], np.ndarray]
    norm: Norm
    radius: float

    def replies(self, x: Tensor) -> Replies:
        """What a client sees, in full: scores of accepted rows, and who was refused."""
        wire = self.to_wire(x)
        answer = self.live.screen(wire, [self.live.plan("")] * len(wire))
        refused = [one.verdict is Verdict.REJECT for one in answer.decisions]
        return Replies(torch.from_numpy(log_softmax(answer.outputs)), torch.tensor(refused))


@dataclass(frozen=True)
class Forged:
    """Of N rows: the forged images, and how many queries each took (None: not counted)."""

    x: Tensor
    queries: Tensor | None = None


@dataclass(frozen=True)
class Entry:
    """One attack of a suite: images, labels and a seed to forged images."""

    name: str
    knowledge: Knowledge
    run: Callable[[Tensor, Tensor, int], Forged]


def suite(name: str, setting: Setting, *, steps: int = 50, queries: int = 500) -> list[Entry]:
    """The attacks of a suite.

    Args:
        name: one of `SUITES`.
        setting: what is attacked.
        steps: of iterated attacks.
        queries: of black-box attacks, for each row.

    Raises:
        ConfigError: no such suite.

    """
    parts: dict[str, Callable[[], list[Entry]]] = {
        "static": lambda: _static(setting, steps),
        "black-box": lambda: _black_box(setting, queries),
        "adaptive": lambda: _adaptive(setting, 2 * steps),
    }
    if name == "full":
        return [entry for part in parts.values() for entry in part()]
    if name not in parts:
        raise ConfigError(f"--suite: {name!r}; expected one of {', '.join(SUITES)}")
    return parts[name]()


def _static(setting: Setting, steps: int) -> list[Entry]:
    model, norm, radius = setting.guard.classify, setting.norm, setting.radius
    one_step = GradientAttack(radius, 1, radius, norm=norm)
    iterated = pgd(radius, steps, norm=norm)
    cross_entropy = AutoPGD(radius, steps, norm)
    ratio = AutoPGD(radius, steps, norm, loss=dlr)
    targeted = TargetedAutoPGD(radius, steps, norm, targets=3)
    return [
        Entry("FGSM", "oblivious", lambda x, y, seed: Forged(one_step(model, x, y, seed=seed))),
        Entry(
            f"PGD-{steps}",
            "oblivious",
            lambda x, y, seed: Forged(iterated(model, x, y, seed=seed)),
        ),
        Entry(
            "APGD-CE",
            "oblivious",
            lambda x, y, seed: Forged(cross_entropy(model, x, y, seed=seed)),
        ),
        Entry("APGD-DLR", "oblivious", lambda x, y, seed: Forged(ratio(model, x, y, seed=seed))),
        Entry("APGD-T", "oblivious", lambda x, y, seed: Forged(targeted(model, x, y, seed=seed))),
    ]


def _black_box(setting: Setting, queries: int) -> list[Entry]:
    def estimated(x: Tensor, y: Tensor, seed: int) -> Forged:
        oracle = Oracle(setting.replies, len(x), queries)
        pairs = max(1, queries // 40)
        attack = EstimatedGradient(setting.radius, steps=20, pairs=pairs, norm=setting.norm)
        return Forged(attack(oracle, x, y, seed=seed), oracle.queries)

    def square(x: Tensor, y: Tensor, seed: int) -> Forged:
        oracle = Oracle(setting.replies, len(x), queries)
        found = Square(setting.radius, queries)(oracle, x, y, seed=seed)
        return Forged(found, oracle.queries)

    entries = [Entry("NES", "black-box", estimated)]
    if setting.norm.name == "linf":
        entries.append(Entry("Square", "black-box", square))
    return entries


def _adaptive(setting: Setting, steps: int) -> list[Entry]:
    def entry(way: Way, combination: Combination) -> Entry:
        evasion = Evasion.of(setting.guard, setting.cascade, way)
        attack = Adaptive(setting.radius, steps, setting.norm, combination)
        return Entry(
            f"adaptive, {combination}, past {'the cheap tier' if way == 'cheap' else 'both tiers'}",
            "adaptive",
            lambda x, y, seed: Forged(attack(setting.guard, x, y, evasion)),
        )

    ways: list[Way] = ["cheap"] if setting.guard.expensive_graph is None else ["cheap", "both"]
    return [entry(way, how) for way in ways for how in ("weighted", "orthogonal")]
