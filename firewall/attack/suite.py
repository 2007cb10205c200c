"""The attacks of an evaluation, by what their attacker knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from firewall.attack.adaptive import Adaptive, Combination, Evasion, Way
from firewall.attack.apgd import AutoPGD, TargetedAutoPGD
from firewall.attack.estimate import EstimatedGradient
from firewall.attack.expectation import Expectation
from firewall.attack.gradient import GradientAttack, Model, pgd
from firewall.attack.hop_skip_jump import HopSkipJump
from firewall.attack.libraries import FoolboxAttack
from firewall.attack.losses import Loss, cross_entropy, dlr, likeliest_dlr
from firewall.attack.norms import Norm
from firewall.attack.oracle import Oracle
from firewall.attack.square import Square
from firewall.attack.victim import GuardParts, Victim
from firewall.errors import ConfigError

#: `white-box` attackers know the classifier, and there is nothing else to know; `oblivious` ones
#: know the classifier and not the guard around it; `adaptive` ones know both.
Knowledge = Literal["white-box", "oblivious", "transfer", "black-box", "adaptive"]
#: The names by which suites are asked for.
SUITES = ("quick", "static", "black-box", "adaptive", "full")


@dataclass(frozen=True)
class Setting:
    """What is attacked, how far, and with what effort.

    Attributes:
        victim: what is attacked.
        norm: the ball.
        radius: of the ball, in units of the image batch.
        steps: of iterated attacks.
        queries: of black-box attacks, for each row.
        draws: of a random victim, for one gradient; 1 where the victim is not random.
        surrogates: networks of the attacker's own, by name.

    """

    victim: Victim
    norm: Norm
    radius: float
    steps: int = 50
    queries: int = 500
    draws: int = 1
    surrogates: tuple[tuple[str, Model], ...] = ()

    @property
    def model(self) -> Model:
        """The classifier alone; in expectation where it is random."""
        if self.draws == 1:
            return self.victim.logits
        return Expectation(self.victim.logits, self.draws)


@dataclass(frozen=True)
class Forged:
    """Of N rows: the forged images, and how many queries each took (None: not counted)."""

    x: Tensor
    queries: Tensor | None = None


@dataclass(frozen=True)
class Entry:
    """One attack of a suite.

    Attributes:
        name: in results.
        knowledge: of its attacker.
        run: images, labels and a seed to forged images.
        bounded: whether it keeps to the radius. One that does not is no part of a worst case.
        loss: what it raises on the classifier; None where it works by something else.

    """

    name: str
    knowledge: Knowledge
    run: Callable[[Tensor, Tensor, int], Forged]
    bounded: bool = True
    loss: Loss | None = None


def suite(name: str, setting: Setting) -> list[Entry]:
    """The attacks of a suite.

    Args:
        name: one of `SUITES`.
        setting: what is attacked.

    Raises:
        ConfigError: no such suite, or it needs a guard and there is none.

    """
    parts: dict[str, Callable[[], list[Entry]]] = {
        "static": lambda: _static(setting) + _transfer(setting),
        "black-box": lambda: _black_box(setting),
        "adaptive": lambda: _adaptive(setting),
    }
    if name == "full":
        return [entry for part in parts.values() for entry in part()]
    if name == "quick":
        return _quick(setting)
    if name not in parts:
        raise ConfigError(f"--suite: {name!r}; expected one of {', '.join(SUITES)}")
    entries = parts[name]()
    if not entries and not setting.victim.differentiable:
        raise ConfigError(
            f"--suite: {name!r} takes gradients, which a classifier served elsewhere does not "
            "give; name a stand-in with --surrogate, or use 'black-box'"
        )
    if name == "adaptive" and setting.victim.guard is None:
        raise ConfigError("--suite: 'adaptive' is for a guard; of a bare classifier use 'static'")
    return entries


def _static(setting: Setting) -> list[Entry]:
    if not setting.victim.differentiable:
        return []
    model, norm, radius, steps = setting.model, setting.norm, setting.radius, setting.steps
    guarded = setting.victim.guard is not None
    knows: Knowledge = "oblivious" if guarded else "white-box"

    def entry(
        title: str, attack: Callable[..., Tensor], loss: Loss | None = None, *, bounded: bool = True
    ) -> Entry:
        return Entry(
            title, knows, lambda x, y, s: Forged(attack(model, x, y, seed=s)), bounded, loss
        )

    momentum = GradientAttack(radius, steps, 2.5 * radius / steps, norm=norm, momentum=1.0)
    return [
        entry("FGSM", GradientAttack(radius, 1, radius, norm=norm), cross_entropy),
        entry("BIM", GradientAttack(radius, steps, 2.5 * radius / steps, norm=norm), cross_entropy),
        # As confident as it gets where a guard looks on; otherwise what fools is done.
        entry(f"PGD-{steps}", pgd(radius, steps, norm=norm, stops=not guarded), cross_entropy),
        entry("MI-FGSM", momentum, cross_entropy),
        entry("APGD-CE", AutoPGD(radius, steps, norm), cross_entropy),
        entry("APGD-DLR", AutoPGD(radius, steps, norm, loss=dlr), dlr),
        entry("APGD-T", TargetedAutoPGD(radius, steps, norm), likeliest_dlr),
        entry("DeepFool", FoolboxAttack("deepfool", norm.name, steps=steps), bounded=False),
        entry("CW-L2", FoolboxAttack("cw", steps=2 * steps), bounded=False),
    ]


def _transfer(setting: Setting) -> list[Entry]:
    radius = setting.radius
    forge = GradientAttack(radius, 20, radius / 8, norm=setting.norm, momentum=1.0)
    return [
        Entry(
            f"transfer, {title}",
            "transfer",
            lambda x, y, s, on=surrogate: Forged(forge(on, x, y, seed=s)),  # type: ignore[misc]
        )
        for title, surrogate in setting.surrogates
    ]


def _quick(setting: Setting) -> list[Entry]:
    """One attack of each kind of attacker: a first look, within minutes."""
    entries = [one for one in _static(setting) if one.name in ("APGD-CE", "APGD-DLR")]
    entries += _transfer(setting)
    entries += [one for one in _black_box(setting) if one.name == "Square"]
    return entries + [one for one in _adaptive(setting) if "weighted" in one.name]


def _black_box(setting: Setting) -> list[Entry]:
    norm, radius, queries = setting.norm, setting.radius, setting.queries

    def asked(attack: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, int], Forged]:
        def run(x: Tensor, y: Tensor, seed: int) -> Forged:
            oracle = Oracle(setting.victim.replies, len(x), queries)
            with torch.no_grad():
                return Forged(attack(oracle, x, y, seed=seed), oracle.queries)

        return run

    pairs = max(1, queries // 40)
    nes = EstimatedGradient(radius, steps=20, pairs=pairs, norm=norm)
    zoo = EstimatedGradient(radius, steps=20, pairs=pairs, norm=norm, directions="coordinates")
    entries = [Entry("NES", "black-box", asked(nes)), Entry("ZOO", "black-box", asked(zoo))]
    if norm.name == "linf":
        entries.append(Entry("Square", "black-box", asked(Square(radius, queries))))
    hop = HopSkipJump(radius, norm=norm)

    def from_another(oracle: Oracle, x: Tensor, y: Tensor, *, seed: int) -> Tensor:
        # A guard refuses noise first; another image is what an attacker has anyway.
        return hop(oracle, x, y, start=x.roll(1, 0), seed=seed)

    entries.append(Entry("HopSkipJump", "black-box", asked(from_another)))
    return entries


def _adaptive(setting: Setting) -> list[Entry]:
    guard = setting.victim.guard
    if guard is None:
        return []
    ways: list[Way] = ["cheap", "both"] if guard.served.has_expensive else ["cheap"]
    return [
        _adaptive_entry(setting, guard, way, how)
        for way in ways
        for how in ("weighted", "orthogonal")
    ]


def _adaptive_entry(
    setting: Setting, guard: GuardParts, way: Way, combination: Combination
) -> Entry:
    """From the image with short reach and long, then from what fools the classifier alone.

    Near the image fewer statistics are over their limits, so a shorter reach often gets through
    where the whole radius does not; each attempt is for the rows that the others left standing.
    """
    evasion = Evasion.of(guard.served, guard.cascade, way)
    opening = AutoPGD(setting.radius, min(20, setting.steps), setting.norm, loss=dlr)
    # Past both tiers each step costs several views: one try, from what has come nearest.
    reaches = (0.25, 0.5, 1.0) if way == "cheap" else (1.0,)

    def run(x: Tensor, y: Tensor, seed: int) -> Forged:
        found = x.clone()
        standing = torch.ones(len(x), dtype=torch.bool)

        def attempt(reach: float, start: Tensor | None) -> None:
            steps = 2 * setting.steps if reach == 1.0 else setting.steps
            attack = Adaptive(reach * setting.radius, steps, setting.norm, combination)
            made = attack(guard.served, x[standing], y[standing], evasion, start=start)
            found[standing] = made
            judged = setting.victim.judge(made)
            through = judged.accepted & (judged.answered != y[standing].numpy())
            standing[standing.clone()] = torch.from_numpy(~through)

        for reach in reaches:
            if bool(standing.any()):
                attempt(reach, None)
        if bool(standing.any()):
            attempt(1.0, opening(setting.model, x[standing], y[standing], seed=seed))
        return Forged(found)

    past = "the cheap tier" if way == "cheap" else "both tiers"
    return Entry(f"adaptive, {combination}, past {past}", "adaptive", run)
