"""The figures of an evaluation, from its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.attack.losses import loss_name
from firewall.attack.suite import Entry
from firewall.attack.victim import GuardParts
from firewall.evaluation.measure import auroc, wilson
from firewall.evaluation.shards import Table

Booleans = npt.NDArray[np.bool_]


def clean_figures(clean: Table, y: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Of images as they are; `y` [N] are their labels."""
    served = clean["accepted"] & clean["right"]
    counts = np.bincount(y)
    return {
        "accuracy": share(clean["bare_right"]),
        # What naming the commonest class for every image would reach.
        "baseline": float(counts.max() / len(y)),
        "by_class": [
            {
                "class": int(label),
                "rows": int(counts[label]),
                "accuracy": float(clean["bare_right"][y == label].mean()),
            }
            for label in np.flatnonzero(counts)
        ],
        "accepted_and_correct": share(served),
        "false_positive_rate": share(~clean["accepted"]),
    }


def attack_figures(clean: Table, entry: Entry, rows: Table, classes: int) -> dict[str, Any]:
    """Of one attack, on a classifier of some classes."""
    served = clean["accepted"] & clean["right"]
    through = rows["accepted"] & ~rows["right"]
    rate = float(through.mean())
    # What failed by itself need not be refused.
    fools = clean["bare_right"] & ~rows["bare_right"]
    return {
        "name": entry.name,
        "knowledge": entry.knowledge,
        "bounded": entry.bounded,
        "loss": None if entry.loss is None else loss_name(entry.loss, classes),
        "raised_rate": float(rows["raised"].mean()),
        "success_rate": rate,
        "success_interval": wilson(rate, len(through)),
        # Of the rows that were right: what is wrong when clean was not fooled.
        "fooled_bare_rate": float(fools.sum() / max(1, clean["bare_right"].sum())),
        "detected_rate": float((~rows["accepted"]).mean()),
        "auroc": auroc(clean["score"], rows["score"]),
        "tpr_at_1pct_fpr": float((rows["p_value"] <= 0.01).mean()),
        "of_those_that_fool": {
            "rows": int(fools.sum()),
            "detected_rate": float((~rows["accepted"][fools]).mean()) if fools.any() else None,
            "auroc": auroc(clean["score"], rows["score"][fools]) if fools.any() else None,
        },
        "robust_accuracy": float((served & ~through).mean()),
        "queries": float(rows["queries"].mean()) if rows["queries"].any() else None,
        "median_linf": float(np.median(rows["linf"])),
        "median_l2": float(np.median(rows["l2"])),
        "seconds": float(rows["seconds"].sum()),
    }


def worst_case(clean: Table, entries: list[Entry], found: dict[str, Table]) -> dict[str, Any]:
    """Over all attacks that keep to the radius, row by row; of the guard and of what it guards."""
    stands: Booleans = clean["accepted"] & clean["right"]
    bare: Booleans = clean["bare_right"].copy()
    for entry in entries:
        if entry.bounded:
            rows = found[entry.name]
            stands = stands & ~(rows["accepted"] & ~rows["right"])
            bare &= rows["bare_right"]
    return {
        "robust_accuracy": float(stands.mean()),
        "interval": wilson(float(stands.mean()), len(stands)),
        "bare_robust_accuracy": float(bare.mean()),
        "bare_interval": wilson(float(bare.mean()), len(bare)),
        "per_example": stands.tolist(),
    }


def certificates(
    clean: Table, entries: list[Entry], found: dict[str, Table], radius: float
) -> dict[str, Any]:
    """Of interval bounds: what is proven, and whether any attack did what is proven impossible.

    Under paranoia 4 the guard accepts only what is certified at half the radius. Then what is
    accepted and right when clean is proven to stand: an image within the radius that is accepted
    as well has the same class.
    """
    bounded = [found[entry.name] for entry in entries if entry.bounded]
    held = clean["lead"] > 0
    demanded = clean["accepted"] & (clean["half_lead"] > 0)
    demanded &= clean["answered"] == clean["bare"]
    served = demanded & clean["right"]
    stands: Booleans = served.copy()
    violations = 0
    for rows in bounded:
        violations += int((held & (rows["bare"] != clean["bare"])).sum())
        passed = rows["accepted"] & (rows["half_lead"] > 0) & (rows["answered"] == rows["bare"])
        stands &= ~(passed & ~rows["right"])
    return {
        "radius": radius,
        "accuracy": share(held & clean["bare_right"]),
        "violations": violations,
        "tries": int(held.sum()) * len(bounded),
        "paranoia_4": {
            "certified_radius": radius / 2,
            "accepted_and_correct": share(served),
            "refused": share(~demanded),
            "robust_accuracy": share(stands),
        },
    }


def ablation(
    guard: GuardParts, clean: Table, entries: list[Entry], found: dict[str, Table]
) -> list[dict[str, Any]]:
    """The same forgeries before guards that lack one stage; an attacker who knew would do better.

    A detector is left out by its own cascade from the same calibration data, so that every line
    promises the same false-positive rate.
    """
    calibration, rate = guard.calibration, guard.cascade.rate
    names = calibration.detectors
    guards: list[tuple[str, tuple[str, ...]]] = [("the whole guard", names)]
    if len(names) > 1:
        for name in names:
            guards.append((f"without {name}", tuple(one for one in names if one != name)))
        guards += [(f"{name} alone", (name,)) for name in names]

    def through(rows: Table, active: tuple[str, ...]) -> tuple[Booleans, Booleans]:
        """Who is accepted, and who is answered wrongly if so."""
        cascade = calibration.cascade(rate, active)
        statistics = rows["statistics"]
        doubt = cascade.doubt(statistics[:, : calibration.cheap])
        escalated = cascade.escalates(doubt)
        scores = cascade.scores(doubt, escalated, statistics[escalated])
        accepted = cascade.p_values(scores, rows["bare"]) > rate
        truth = np.where(clean["right"], clean["answered"], -1)
        answered = np.where(escalated, rows["averaged"], rows["bare"])
        return accepted, answered != truth

    lines: list[dict[str, Any]] = []
    for title, active in guards:
        line: dict[str, Any] = {
            "guard": title,
            "false_positive_rate": float((~through(clean, active)[0]).mean()),
            "through": {},
        }
        for entry in entries:
            accepted, wrong = through(found[entry.name], active)
            line["through"][entry.name] = float((accepted & wrong & clean["right"]).mean())
        lines.append(line)
    bare = {
        entry.name: float((~found[entry.name]["bare_right"] & clean["right"]).mean())
        for entry in entries
    }
    lines.append({"guard": "no guard", "false_positive_rate": 0.0, "through": bare})
    return lines


def confusion(clean: Table, found: dict[str, Table], classes: int) -> list[dict[str, Any]]:
    """Who was fooled into what, over all attacks, the most frequent first: at most 200 pairs."""
    count: dict[tuple[int, int], int] = {}
    for rows in found.values():
        through = rows["accepted"] & ~rows["right"] & clean["right"]
        for was, is_ in zip(
            clean["answered"][through].tolist(), rows["answered"][through].tolist(), strict=True
        ):
            count[was, is_] = count.get((was, is_), 0) + 1
    ordered = sorted(count.items(), key=lambda pair: (-pair[1], pair[0]))
    return [{"from": was, "to": is_, "count": n} for (was, is_), n in ordered[:200]]


def among(values: npt.NDArray[Any], right: Booleans) -> float | None:
    """Mean over the rows that the classifier had right when clean; None without any.

    Args:
        values: of the first rows of an evaluation.
        right: [N] of all its rows.

    """
    kept = values[right[: len(values)]]
    return float(kept.mean()) if len(kept) else None


def share(hits: Booleans) -> dict[str, Any]:
    """A proportion with its 95 % interval."""
    return {"value": float(hits.mean()), "interval": wilson(float(hits.mean()), len(hits))}
