"""One row at a time decides as arrays do, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from firewall.screening.calibration import Calibration, Combination, Weights

ROWS = 300


def calibration(combination: Combination, classes: int, seed: int) -> Calibration:
    rng = np.random.default_rng(seed)
    part_a, part_b = (np.round(rng.normal(size=(ROWS, 4)), 2) for _ in range(2))
    said_a, said_b = (rng.integers(0, classes, ROWS) for _ in range(2))
    return Calibration(
        detectors=("a", "b", "c", "d"),
        cheap=2,
        part_a=part_a,
        part_b=part_b,
        escalation=0.3,
        said_a=said_a if classes > 1 else None,
        said_b=said_b if classes > 1 else None,
        combination=combination,
        weights=Weights((0.7, 1.9), (0.5, 0.0, 2.25, 1.1)) if combination == "learnt" else None,
        photographs=np.arange(ROWS) // 7 if combination == "learnt" and classes == 1 else None,
    )


@pytest.mark.parametrize("combination", ["fisher", "harmonic", "learnt"])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("active", [None, ("a", "c"), ("c", "d"), ("a", "b")])
def test_it_is_the_cascade(
    combination: Combination, classes: int, active: tuple[str, ...] | None
) -> None:
    cascade = calibration(combination, classes, 0).cascade(0.1, active)
    rng = np.random.default_rng(1)
    # Rounded, so that many are equal to what they are compared with; some beyond all of it.
    statistics = np.round(rng.normal(size=(500, 4)), 2).astype(np.float32)
    statistics[:20] = 1e6
    said = rng.integers(0, classes + 3, 500)
    doubt = cascade.doubt(statistics[:, :2])
    escalated = cascade.escalates(doubt)
    scores = cascade.scores(doubt, escalated, statistics[escalated])
    p_values = cascade.p_values(scores, said)
    rule = cascade.rule
    for row, values in enumerate(statistics.tolist()):
        assert rule.doubt(values[:2]) == doubt[row]
        assert (rule.doubt(values[:2]) >= rule.threshold) == escalated[row]
        score = rule.score(float(doubt[row]), values if escalated[row] else None)
        assert score == scores[row]
        assert rule.p_value(score, int(said[row])) == p_values[row]
    assert rule.asks_class == (classes > 1)


def test_places_are_those_of_active_detectors() -> None:
    rule = calibration("fisher", 1, 0).cascade(0.1, ("b", "d")).rule
    assert rule.cheap_places == (1,)
    assert rule.places == (1, 3)
