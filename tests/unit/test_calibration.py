from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firewall.errors import BundleMalformed, CalibrationError, SampleTooSmall
from firewall.screening.calibration import Calibration, Cascade, Combination, least_sample

NAMES = ("a", "b", "c", "d")


def clean(rows: int, rng: np.random.Generator) -> np.ndarray:
    """Four dependent, skewed statistics: nothing that a normal theory would fit."""
    base = rng.standard_normal((rows, 1))
    return np.exp(0.5 * base + rng.standard_normal((rows, 4)))


def calibration(rows_a: int = 150, rows_b: int = 150, seed: int = 0) -> Calibration:
    rng = np.random.default_rng(seed)
    return Calibration(NAMES, 2, clean(rows_a, rng), clean(rows_b, rng), 0.2)


def p_values(
    cascade: Cascade, statistics: np.ndarray, said: np.ndarray | None = None
) -> np.ndarray:
    doubt = cascade.doubt(statistics[:, :2])
    escalated = cascade.escalates(doubt)
    scores = cascade.scores(doubt, escalated, statistics[escalated])
    return cascade.p_values(scores, np.zeros(len(scores), np.int64) if said is None else said)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1])
@pytest.mark.parametrize("active", [None, frozenset({"a", "c"}), frozenset({"b"})])
@pytest.mark.parametrize("combination", ["fisher", "harmonic"])
def test_the_rate_that_was_promised_is_kept(
    rate: float, active: frozenset[str] | None, combination: Combination
) -> None:
    """Over draws of calibration and test data, the mean of rejections is at most the rate.

    Exactly floor(rate * (n + 1)) / (n + 1) for continuous scores; the tolerance is five standard
    errors of 200 draws of 400 rows.
    """
    rates = []
    for seed in range(200):
        rng = np.random.default_rng(1000 + seed)
        one = Calibration(NAMES, 2, clean(150, rng), clean(150, rng), 0.3, combination=combination)
        rates.append((p_values(one.cascade(rate, active), clean(400, rng)) <= rate).mean())
    error = np.std(rates) / np.sqrt(len(rates))
    assert np.mean(rates) <= rate + 5 * error
    # And it is used, not only kept: ties of part A's ranks cost a little.
    assert np.mean(rates) >= 0.4 * np.floor(rate * 151) / 151


def test_one_detector_that_is_certain_is_heard_among_many_that_see_nothing() -> None:
    rng = np.random.default_rng(0)
    a, b, rows = (rng.standard_normal((size, 8)) for size in (1500, 1500, 500))
    # Beyond all that it ever says of clean rows.
    rows[:, 0] = 100.0
    caught = {}
    for combination in ("fisher", "harmonic"):
        names = tuple(f"d{n}" for n in range(8))
        one = Calibration(names, 0, a, b, 1.0, combination=combination)
        cascade = one.cascade(0.01)
        doubt = cascade.doubt(rows[:, :0])
        scores = cascade.scores(doubt, cascade.escalates(doubt), rows)
        p = cascade.p_values(scores, np.zeros(len(rows), np.int64))
        caught[combination] = (p <= 0.01).mean()
        assert (scores >= 0).all()
    assert caught["harmonic"] == 1.0
    assert caught["fisher"] < 0.7


def test_a_suspicious_row_gets_the_least_p_value() -> None:
    cascade = calibration().cascade(0.05)
    assert p_values(cascade, np.full((1, 4), 1e6))[0] == pytest.approx(1 / 151)


def test_an_innocent_row_stays_in_the_cheap_tier() -> None:
    cascade = calibration().cascade(0.05)
    doubt = cascade.doubt(np.full((1, 2), -1e6))
    assert not cascade.escalates(doubt)[0]


def test_the_cheap_tier_hands_on_about_the_share_it_was_told() -> None:
    cascade = calibration(2000, 2000).cascade(0.05)
    assert cascade.escalated_share == pytest.approx(0.2, abs=0.05)


@given(
    rows=st.integers(1, 60),
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_p_values_lie_in_range_and_fall_with_suspicion(
    rows: int, values: list[float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    one = Calibration(("a",), 0, rng.standard_normal((rows, 1)), rng.standard_normal((rows, 1)), 1)
    cascade = one.cascade(0.6)
    statistics = np.sort(np.array(values))[:, None]
    doubt = cascade.doubt(np.empty((len(statistics), 0)))
    escalated = cascade.escalates(doubt)
    assert escalated.all()
    p = cascade.p_values(cascade.scores(doubt, escalated, statistics), np.zeros(len(doubt), int))
    assert (p >= 1 / (rows + 1)).all()
    assert (p <= 1).all()
    assert (np.diff(p) <= 0).all()


@pytest.mark.parametrize(("rate", "size"), [(0.01, 99), (0.05, 19), (0.001, 999), (0.3, 3)])
def test_least_sample(rate: float, size: int) -> None:
    assert least_sample(rate) == size
    assert 1 / (size + 1) <= rate < 1 / size


def test_a_rate_that_the_sample_cannot_promise_is_refused_with_the_size_that_would_do() -> None:
    with pytest.raises(SampleTooSmall, match=r"0\.001 .* 150 .* 999"):
        calibration().cascade(0.001)


def test_a_rate_over_the_escalated_share_is_refused() -> None:
    with pytest.raises(CalibrationError, match="reach the expensive tier"):
        calibration().cascade(0.4)


def test_no_detector_left_is_refused() -> None:
    with pytest.raises(CalibrationError, match="leaves none active"):
        calibration().cascade(0.05, frozenset())


def test_json_round_trip_is_exact() -> None:
    one = calibration()
    again = Calibration.from_json(one.to_json())
    assert again.detectors == one.detectors
    assert np.array_equal(again.part_a, one.part_a)
    assert np.array_equal(again.part_b, one.part_b)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"detectors": ["a"], "cheap": 2, "escalation": 0.2, "part_a": [[1]], "part_b": [[1]]}',
        b'{"detectors": ["a"], "cheap": 1, "escalation": 7, "part_a": [[1]], "part_b": [[1]]}',
        b'{"detectors": ["a"], "cheap": 1, "escalation": 0.2, "part_a": [], "part_b": [[1]]}',
        b'{"detectors": ["a"], "cheap": 1, "escalation": 0.2, "part_a": [[NaN]], "part_b": [[1]]}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_calibration_is_refused(text: bytes) -> None:
    with pytest.raises(BundleMalformed, match=r"calibration\.json"):
        Calibration.from_json(text)


def classed(rows: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Statistics that are higher the higher the class is; the last class is rare."""
    rng = np.random.default_rng(seed)
    said = rng.choice(classes, rows, p=[*[0.99 / (classes - 1)] * (classes - 1), 0.01])
    return clean(rows, rng) * (1 + said[:, None]), said.astype(np.int64)


def by_class(rows: int, seed: int) -> Calibration:
    (a, said_a), (b, said_b) = classed(rows, 4, seed), classed(rows, 4, seed + 1)
    return Calibration(NAMES, 2, a, b, 1.0, said_a=said_a, said_b=said_b)


def test_a_promise_to_each_class_is_kept_for_each_class() -> None:
    """One that is made to all rows together falls on the class whose statistics are highest."""
    together, each = np.zeros(3), np.zeros(3)
    for seed in range(40):
        one = by_class(1200, 2 * seed)
        statistics, said = classed(2000, 4, 10_000 + seed)
        for rates, calibration in (
            (each, one),
            (together, dataclasses.replace(one, said_a=None, said_b=None)),
        ):
            refused = p_values(calibration.cascade(0.05), statistics, said) <= 0.05
            rates += [refused[said == k].mean() / 40 for k in range(3)]
    assert together[2] > 0.08
    assert together[0] < 0.02
    assert (each <= 0.055).all()
    assert (each >= 0.035).all()


def test_classes_of_few_rows_share_a_promise() -> None:
    one = by_class(1200, 0)
    # Twelve rows of the last class are too few for 5 %; the rarest of the others takes them in.
    group = one.groups(0.05)
    assert len(group) == 5
    assert group[3] == group[4] == 0
    assert sorted(group[:3]) == [0, 1, 2]
    # No class has the 142 rows that 1 % takes: one promise to all.
    assert (by_class(120, 0).groups(0.01) == 0).all()
    assert one.cascade(0.05).score_ceilings.shape == (5,)


def test_a_class_that_calibration_never_saw_is_judged_with_the_rare_ones() -> None:
    cascade = by_class(1200, 0).cascade(0.05)
    rows = np.full((2, 4), 30.0)
    rare, unseen = p_values(cascade, rows, np.array([3, 900]))
    assert rare == unseen


def test_classes_survive_a_bundle() -> None:
    one = by_class(200, 0)
    again = Calibration.from_json(one.to_json())
    assert again.by_class
    assert (again.said_b == one.said_b).all()
    assert not Calibration.from_json(calibration().to_json()).by_class


@pytest.mark.parametrize("said", [np.zeros(3, np.int64), np.full(150, -1)])
def test_classes_that_do_not_fit_are_refused(said: np.ndarray) -> None:
    with pytest.raises(CalibrationError, match="said_a"):
        dataclasses.replace(calibration(), said_a=said, said_b=said)
    with pytest.raises(CalibrationError, match="one is missing"):
        dataclasses.replace(calibration(), said_a=np.zeros(150, np.int64))


def test_an_unknown_combination_is_refused() -> None:
    body = calibration().to_json().replace(b'"fisher"', b'"guess"')
    with pytest.raises(BundleMalformed, match="combination: 'guess' is unknown"):
        Calibration.from_json(body)
