"""Flags: what a figure may hide is said in words."""

from __future__ import annotations

from typing import Any

import numpy as np

from firewall.evaluation.figures import clean_figures
from firewall.evaluation.flags import flags
from firewall.evaluation.shards import Table


def entry(name: str, knowledge: str, success: float, fooled: float) -> dict[str, Any]:
    return {
        "name": name, "knowledge": knowledge, "success_rate": success, "fooled_bare_rate": fooled,
        "loss": "margin", "raised_rate": 1.0,
    }  # fmt: skip


SOUND = [
    entry("PGD-50", "oblivious", 0.1, 0.8),
    entry("APGD-CE", "oblivious", 0.1, 0.82),
    entry("Square", "black-box", 0.3, 0.5),
    entry("transfer, no query", "transfer", 0.2, 0.3),
    entry("adaptive", "adaptive", 0.9, 0.9),
]


def column(share: float) -> np.ndarray:
    return np.arange(100) < round(100 * share)


def probes(**changes: float) -> dict[str, dict[str, np.ndarray]]:
    share = {"noise": 0.1, "large": 1.0, "steps": 0.82, "restarts": 0.8} | changes
    found = {
        name: {"fooled": column(share[name])} for name in ("noise", "large", "steps", "restarts")
    }
    vanished, random = column(changes.get("vanished", 0)), column(changes.get("random", 0))
    return found | {"gradient": {"vanished": vanished, "random": random}}


def clean(accuracy: float = 1.0, named: int | None = None) -> tuple[dict[str, Any], Table]:
    """Figures and rows of clean images of ten classes; `named` is answered for every one."""
    y = np.arange(100) % 10
    right = column(accuracy)
    rows = {
        "accepted": column(1.0), "right": right, "bare_right": right,
        "bare": y if named is None else np.full(100, named),
    }  # fmt: skip
    return clean_figures(rows, y), rows


FOUND = {"PGD-50": {"bare_right": ~column(0.8)}, "APGD-CE": {"bare_right": ~column(0.82)}}


def test_a_sound_evaluation_raises_nothing() -> None:
    assert flags(SOUND, *clean(), FOUND, probes(), guarded=True) == []


def test_each_flag() -> None:
    def raised(attacks: list[dict[str, Any]] = SOUND, **changes: float) -> str:
        [one] = flags(attacks, *clean(), FOUND, probes(**changes), guarded=True)
        return one

    masked = [SOUND[0] | {"fooled_bare_rate": 0.2}, *SOUND[1:]]
    assert raised(masked).startswith("gradient masking: APGD-CE fools the bare classifier on 82%")
    weak = [*SOUND[:4], SOUND[4] | {"success_rate": 0.21}]
    assert "black-box beats white box: Square succeeds on 30%" in raised(weak)
    blind = [*SOUND[:3], SOUND[3] | {"fooled_bare_rate": 0.95}, SOUND[4]]
    assert raised(blind).startswith("gradient masking: transfer, no query, without a gradient")
    still = [SOUND[0], SOUND[1] | {"raised_rate": 0.0, "loss": "DLR"}, *SOUND[2:]]
    assert raised(still).startswith("APGD-CE is blind: its loss (DLR) rose on no row")
    assert "no adaptive attack" in raised(SOUND[:4])
    assert "vanished gradients" in raised(vanished=0.4)
    assert raised(random=1.0).startswith("random: the same image")
    assert "four times as many raise the success of APGD-CE" in raised(steps=0.95)
    assert "five instead of one raise the success of PGD-50" in raised(restarts=0.95)
    assert "instead of all" in raised(large=0.99)
    assert "the figures are about noise" in raised(noise=0.8)


def test_labels_that_do_not_belong_are_the_first_warning() -> None:
    blind = [SOUND[0] | {"raised_rate": 0.0}, *SOUND[1:]]
    first, second = flags(blind, *clean(accuracy=0.08), FOUND, probes(), guarded=True)[:2]
    assert first.startswith("clean accuracy 8.0% is no better than naming the commonest class")
    assert "labels or preprocessing do not belong to this classifier" in first
    assert second.startswith("PGD-50 is blind")
    figures, rows = clean(accuracy=0.5, named=3)
    [only] = flags(SOUND, figures, rows, FOUND, probes(), guarded=True)
    assert only.startswith("the classifier names class 3 for 100% of clean images")


def test_what_was_wrong_when_clean_is_not_counted_as_fooled() -> None:
    """On a network that no attack moves, nothing is fooled, however often it is wrong."""
    figures, rows = clean(accuracy=0.4)
    unmoved = {name: {"bare_right": rows["bare_right"]} for name in FOUND}
    # Noise "fools" the 60 % that were wrong anyway.
    wrong = {"fooled": ~rows["bare_right"]}
    still = probes() | dict.fromkeys(("noise", "steps", "restarts"), wrong)
    attacks = [one | {"fooled_bare_rate": 0.0} for one in SOUND]
    assert flags(attacks, figures, rows, unmoved, still, guarded=True) == []
