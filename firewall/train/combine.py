"""A learnt combination of statistics: logistic, with no negative weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from firewall.screening.calibration import Calibration, Weights
from firewall.screening.row_rule import Column

Doubles = npt.NDArray[np.float64]

#: Of the squares of weights, beside the mean loss of a row.
_PENALTY = 1e-3
#: Rows of a kind below which a choice among them is no longer made: all are used.
FEWEST = 30


def with_learnt_weights(calibration: Calibration, clean: Doubles, forged: Doubles) -> Calibration:
    """Fit the weights of both combinations of a cascade.

    A row is scored by the logistic model's log-odds of "forged", less its intercept: a sum of the
    detectors' calibrated scores. No weight is negative, so that a statistic never speaks for a row
    by being higher. The second combination is fitted on rows that the first hands on.

    Args:
        calibration: reference distributions and escalation; its combination is replaced.
        clean: [N, D] statistics of benign images that took no part in teaching, nor in part B.
        forged: [M, D] statistics of forgeries, likewise.

    """
    width = len(calibration.detectors)
    even = Weights((1.0,) * calibration.cheap, (1.0,) * width)
    # Of a cascade in which all rows go on, so that few images can make it.
    plain = replace(calibration, combination="learnt", weights=even, escalation=1.0)
    columns = plain.cascade(1 / (plain.units + 1)).columns("every")
    parts = [_scores(columns, rows) for rows in (calibration.part_a, clean, forged)]
    doubts = [scores[:, : calibration.cheap] for scores in parts]
    cheap = tuple(fit_weights(*doubts[1:]))
    reference, *doubt = (rows @ np.array(cheap) for rows in doubts)
    limit = np.quantile(reference, 1.0 - calibration.escalation, method="lower")
    kept = [scores[on >= limit] for scores, on in zip(parts[1:], doubt, strict=True)]
    if min(len(one) for one in kept) < FEWEST:
        kept = parts[1:]
    weights = Weights(cheap, tuple(fit_weights(*kept)))
    return replace(calibration, combination="learnt", weights=weights)


def fit_weights(clean: Doubles, forged: Doubles) -> list[float]:
    """Weights [D], 0 or more and not all 0, of scores [N, D] and [M, D]; both kinds weigh alike."""
    if not clean.shape[1]:
        return []
    x = np.concatenate([clean, forged])
    sign = np.concatenate([-np.ones(len(clean)), np.ones(len(forged))])
    share = np.concatenate(
        [np.full(len(clean), 0.5 / len(clean)), np.full(len(forged), 0.5 / len(forged))]
    )

    def loss(at: Doubles) -> tuple[float, Doubles]:
        odds = sign * (x @ at[:-1] + at[-1])
        value = (share * np.logaddexp(0.0, -odds)).sum() + _PENALTY * (at[:-1] ** 2).sum()
        pull = -sign * share / (1.0 + np.exp(np.minimum(odds, 700.0)))
        slope = np.append(x.T @ pull + 2 * _PENALTY * at[:-1], pull.sum())
        return float(value), slope

    width = x.shape[1]
    start = np.append(np.full(width, 0.5), -1.0)
    bounds = [(0.0, None)] * width + [(None, None)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x[:-1]
    if not found.max() > 0:
        # Statistics that do not tell forgeries apart: none is better than another.
        return [1.0] * width
    return [float(one) for one in found]


def _scores(columns: Sequence[Column], rows: Doubles) -> Doubles:
    found = np.empty((len(rows), len(columns)))
    for number, column in enumerate(columns):
        found[:, number] = [column.score(value) for value in rows[:, column.place].tolist()]
    return found
