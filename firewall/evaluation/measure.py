"""Figures about a guard, with intervals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


def wilson(rate: float, trials: float) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927); `trials` may be an effective number."""
    z = 1.959963984540054
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials**2))
    half /= 1 + z * z / trials
    return max(0.0, centre - half), min(1.0, centre + half)


def cluster_interval(
    hits: npt.NDArray[np.bool_], groups: npt.NDArray[np.intp]
) -> tuple[float, float]:
    """95 % interval of a proportion whose trials come in groups, such as crops of photographs.

    Wilson's, with as many trials as the spread between groups leaves (Korn, Graubard 1998): the
    number of groups where every trial agrees, and never more than the trials there are.
    """
    names = np.unique(groups)
    count = np.array([hits[groups == name].sum() for name in names], np.float64)
    size = np.array([(groups == name).sum() for name in names], np.float64)
    rate = float(hits.mean())
    clusters, trials = len(names), len(hits)
    binomial = rate * (1 - rate) / trials
    if binomial == 0 or clusters < 2:
        return wilson(rate, clusters)
    between = ((count - rate * size) ** 2).sum() * clusters / (clusters - 1) / trials**2
    effective = min(trials, max(1.0, trials * binomial / max(between, 1e-12)))
    return wilson(rate, effective)


def auroc(clean: Doubles, attacked: Doubles) -> float:
    """Area under the ROC of a score that is higher for attacked rows; ties count a half."""
    order = np.sort(clean)
    below = np.searchsorted(order, attacked, side="left")
    upto = np.searchsorted(order, attacked, side="right")
    return float((below + 0.5 * (upto - below)).mean() / len(clean))


def false_positives(
    p_values: Doubles, groups: npt.NDArray[np.intp], rates: tuple[float, ...] = (0.01, 0.05)
) -> dict[str, Any]:
    """Rejected clean rows at each promised rate.

    Returns:
        `rows`, `photographs`, and by rate: `rejected`, `rate`, `interval` (rows as independent
        trials) and `interval_by_photograph` (photographs as independent trials).

    """
    figures: dict[str, Any] = {"rows": len(p_values), "photographs": len(np.unique(groups))}
    for rate in rates:
        rejected = p_values <= rate
        figures[f"{rate:g}"] = {
            "rejected": int(rejected.sum()),
            "rate": float(rejected.mean()),
            "interval": wilson(float(rejected.mean()), len(rejected)),
            "interval_by_photograph": cluster_interval(rejected, groups),
        }
    return figures
