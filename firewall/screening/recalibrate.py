"""Calibration anew, by other clean inputs: the graphs stay what they are. Imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.errors import SampleTooSmall
from firewall.screening.calibration import Calibration, Classes, least_sample
from firewall.screening.compiled import GuardGraphs


def recalibrate(
    before: Calibration,
    compiled: GuardGraphs,
    wire: npt.NDArray[Any],
    *,
    rate: float,
    rng: np.random.Generator,
) -> Calibration:
    """The same detectors, combination and escalation, with new reference distributions.

    Args:
        before: of the same graphs.
        compiled: the graphs.
        wire: [N, *input shape] clean inputs, drawn alike and in no order that matters.
        rate: false positives that it must be able to promise.
        rng: draws which rows make part A and which part B.

    Raises:
        SampleTooSmall: N cannot promise the rate.

    """
    least = least_sample(rate)
    half = len(wire) // 2
    if half < least:
        raise SampleTooSmall(
            f"clean rows: {len(wire)} cannot promise a false-positive rate of {rate:g}; expected "
            f"at least {2 * least}"
        )
    _, statistics = compiled.both(wire)
    order = rng.permutation(len(wire))
    parts = (np.sort(order[:half]), np.sort(order[half:]))
    said = _said(compiled, wire) if before.by_class else None
    return Calibration(
        detectors=before.detectors,
        cheap=before.cheap,
        part_a=statistics[parts[0]].astype(np.float64),
        part_b=statistics[parts[1]].astype(np.float64),
        escalation=before.escalation,
        guard_model=before.guard_model,
        said_a=None if said is None else said[parts[0]],
        said_b=None if said is None else said[parts[1]],
        combination=before.combination,
        weights=before.weights,
    )


def _said(compiled: GuardGraphs, wire: npt.NDArray[Any], batch: int = 64) -> Classes:
    """[N] classes that the classifier alone names."""
    parts = [
        compiled.cheap(np.ascontiguousarray(wire[n : n + batch])).logits.argmax(axis=1)
        for n in range(0, len(wire), batch)
    ]
    return np.concatenate(parts).astype(np.int64)
