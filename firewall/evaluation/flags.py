"""What makes an evaluation untrustworthy, in words.

The checks of Carlini et al. 2019 (arXiv:1902.06705), Tramer et al. 2020 (arXiv:2002.08347) and of
AutoAttack (arXiv:2003.01690). A raised flag says that the figures may flatter, and why.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.evaluation.figures import among
from firewall.evaluation.shards import Table

#: A share of rows by which one attack must beat another before a flag says so.
NOTABLE = 0.05
#: Share of images from which one class is named for nearly all.
_NEARLY_ALL = 0.95


def flags(
    attacks: list[dict[str, Any]],
    figures: dict[str, Any],
    clean: Table,
    found: dict[str, Table],
    probes: dict[str, Table],
    *,
    guarded: bool,
) -> list[str]:
    """Sentences, the gravest first.

    Args:
        attacks: of the evaluation, as `figures.attack_figures` makes them.
        figures: of clean images, as `figures.clean_figures` makes them.
        clean: rows of clean images.
        found: of each attack by name, its rows.
        probes: by name; those that were not run are not judged.
        guarded: whether what was attacked has a guard.

    """
    right = clean["bare_right"]
    raised = [
        *_labels(figures, clean),
        *_blind(attacks),
        *_masking(attacks),
        *_gradients(probes),
        *_randomness(probes),
        *_order(attacks),
        *_effort(found, probes, right),
        *_reach(probes, right),
        *_noise(attacks, probes, right),
    ]
    if guarded and not any(one["knowledge"] == "adaptive" for one in attacks):
        raised.append(
            "no adaptive attack: the figures are about attackers who do not know the guard"
        )
    if not probes:
        raised.append(
            "no checks were run of whether the attacks are as strong as they can be; firewall "
            "evaluate --suite full runs them"
        )
    return raised


def _labels(figures: dict[str, Any], clean: Table) -> list[str]:
    """What makes every other figure meaningless, first."""
    raised: list[str] = []
    accuracy, baseline = figures["accuracy"]["value"], figures["baseline"]
    if accuracy <= baseline and len(figures["by_class"]) > 1:
        raised.append(
            f"clean accuracy {accuracy:.1%} is no better than naming the commonest class always "
            f"({baseline:.1%}): labels or preprocessing do not belong to this classifier"
        )
    names, counts = np.unique(clean["bare"], return_counts=True)
    share = counts.max() / len(clean["bare"])
    if share >= _NEARLY_ALL and baseline < _NEARLY_ALL:
        raised.append(
            f"the classifier names class {names[counts.argmax()]} for {share:.0%} of clean images: "
            "preprocessing does not belong to this classifier"
        )
    return raised


def _blind(attacks: list[dict[str, Any]]) -> list[str]:
    return [
        f"{one['name']} is blind: its loss ({one['loss']}) rose on no row, so it says nothing"
        for one in attacks
        if one["loss"] is not None and one["raised_rate"] == 0
    ]


def _masking(attacks: list[dict[str, Any]]) -> list[str]:
    pgd = [one for one in attacks if one["name"].startswith("PGD-")]
    auto = [one for one in attacks if one["name"].startswith("APGD")]
    if not pgd or not auto:
        return []
    weak, best = pgd[0], max(auto, key=lambda one: float(one["fooled_bare_rate"]))
    if best["fooled_bare_rate"] <= weak["fooled_bare_rate"] + NOTABLE:
        return []
    return [
        f"gradient masking: {best['name']} fools the bare classifier on "
        f"{best['fooled_bare_rate']:.0%} of rows where {weak['name']} fools it on "
        f"{weak['fooled_bare_rate']:.0%}"
    ]


def _gradients(probes: dict[str, Table]) -> list[str]:
    if "gradient" not in probes or probes["gradient"]["vanished"].mean() <= NOTABLE:
        return []
    share = probes["gradient"]["vanished"].mean()
    return [
        f"vanished gradients: cross-entropy has none at all on {share:.0%} of rows, so attacks "
        "that use it are blind there"
    ]


def _randomness(probes: dict[str, Table]) -> list[str]:
    if "gradient" not in probes or not probes["gradient"]["random"].any():
        return []
    return [
        "random: the same image is answered differently each time; gradients were averaged over "
        "draws, and a single answer proves nothing"
    ]


def _order(attacks: list[dict[str, Any]]) -> list[str]:
    """Whoever knows more must do no worse."""
    raised: list[str] = []
    blind = [one for one in attacks if one["knowledge"] in ("black-box", "transfer")]
    seeing = [one for one in attacks if one["knowledge"] in ("adaptive", "white-box")]
    for one in blind:
        best = max((other["success_rate"] for other in seeing), default=None)
        if best is not None and one["success_rate"] > best + NOTABLE:
            raised.append(
                f"{one['knowledge']} beats white box: {one['name']} succeeds on "
                f"{one['success_rate']:.0%} of rows, the best informed attack on {best:.0%}; the "
                "informed attacks are too weak"
            )
    bare = [one for one in attacks if one["name"].startswith(("PGD-", "APGD"))]
    for one in blind:
        best = max((other["fooled_bare_rate"] for other in bare), default=None)
        if best is not None and one["fooled_bare_rate"] > best + NOTABLE:
            raised.append(
                f"gradient masking: {one['name']}, without a gradient, fools the bare classifier "
                f"on {one['fooled_bare_rate']:.0%} of rows, the best gradient attack on {best:.0%}"
            )
    return raised


def _effort(
    found: dict[str, Table], probes: dict[str, Table], right: npt.NDArray[np.bool_]
) -> list[str]:
    raised: list[str] = []
    steps = [name for name in found if name.startswith("PGD-")]
    for probe, name, word in (
        ("steps", "APGD-CE", "steps: four times as many"),
        ("restarts", steps[0] if steps else "", "restarts: five instead of one"),
    ):
        if probe not in probes or name not in found:
            continue
        more = among(probes[probe]["fooled"], right)
        before = among(~found[name]["bare_right"][: len(probes[probe]["fooled"])], right)
        if more is not None and before is not None and more > before + NOTABLE:
            raised.append(
                f"too few {word} raise the success of {name} on the bare classifier from "
                f"{before:.0%} to {more:.0%}"
            )
    return raised


def _reach(probes: dict[str, Table], right: npt.NDArray[np.bool_]) -> list[str]:
    reached = among(probes["large"]["fooled"], right) if "large" in probes else None
    if reached is None or reached >= 1 - 1e-9:
        return []
    return [
        "gradients are no guide: at a radius at which everything is within reach the attack fools "
        f"the bare classifier on {reached:.1%} of rows instead of all"
    ]


def _noise(
    attacks: list[dict[str, Any]], probes: dict[str, Table], right: npt.NDArray[np.bool_]
) -> list[str]:
    bare = [one["fooled_bare_rate"] for one in attacks if one["name"].startswith("PGD-")]
    noise = among(probes["noise"]["fooled"], right) if "noise" in probes else None
    if noise is None or not bare or noise < 0.5 or noise < max(bare) - NOTABLE:
        return []
    return [
        f"random noise of this radius fools the bare classifier on {noise:.0%} of rows, as much as "
        "an attack does: the figures are about noise"
    ]
