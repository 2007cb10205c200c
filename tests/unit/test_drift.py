"""The watch over calibration: few false alarms, and quick where the promise is broken."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from firewall.screening.drift import Drift, bounds

ROWS = 1500


def uniform(rows: int, seed: int) -> list[float]:
    return np.random.default_rng(seed).random(rows).tolist()


@pytest.mark.parametrize(("level", "rows"), [(0.01, 1500), (0.5, 1500), (0.1, 99), (0.05, 40)])
def test_bounds_are_a_beta_distributions(level: float, rows: int) -> None:
    rank = int(np.floor(level * (rows + 1) + 1e-9))
    low, high = bounds(level, rows)
    assert low == pytest.approx(stats.beta.ppf(0.0005, rank, rows + 1 - rank), abs=1e-9)
    assert high == pytest.approx(stats.beta.ppf(0.9995, rank, rows + 1 - rank), abs=1e-9)
    assert low < level < high + 1e-3


def test_too_few_rows_say_nothing() -> None:
    assert bounds(0.01, 50) == (0.0, 1.0)
    watch = Drift(0.01, 50)
    # The rate cannot be judged by so few; a tenth and a half can.
    assert {test.level for test in watch._tests} == {0.1, 0.5}
    watch.see([0.001] * 100)
    assert "below 0.1" in watch.alarm


def test_clean_traffic_raises_no_alarm() -> None:
    for seed in range(5):
        watch = Drift(0.01, ROWS)
        watch.see(uniform(20_000, seed))
        assert watch.alarm == ""
        assert watch.evidence < 1


def test_the_luck_of_calibration_is_no_alarm() -> None:
    """p-values against a real calibration sample are not quite uniform, for ever."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        clean = np.sort(rng.random(ROWS))
        new = rng.random(20_000)
        p = (1 + ROWS - np.searchsorted(clean, new)) / (ROWS + 1)
        watch = Drift(0.01, ROWS)
        watch.see(p.tolist())
        assert watch.alarm == ""


@pytest.mark.parametrize(
    ("change", "within"),
    [
        (lambda p: p**1.5, 3000),
        (lambda p: p * 0.7, 3000),
        (lambda p: 1 - (1 - p) ** 1.5, 3000),
        (lambda p: p**0.6, 3000),
    ],
    ids=["smaller", "shrunk", "tilted", "larger"],
)
def test_a_change_is_found(change: object, within: int) -> None:
    watch = Drift(0.01, ROWS)
    watch.see(uniform(5000, 1))
    assert watch.alarm == ""
    changed = change(np.array(uniform(within, 2)))  # type: ignore[operator]
    watch.see(changed.tolist())
    assert watch.alarm


def test_a_burst_of_refusals_is_found_soon() -> None:
    """Five times as many as promised."""
    rng = np.random.default_rng(0)
    p = rng.random(2000)
    p[rng.random(2000) < 0.05] = 0.002
    watch = Drift(0.01, ROWS)
    watch.see(p.tolist())
    assert "more p-values below 0.01" in watch.alarm


def test_false_alarms_are_as_rare_as_was_said() -> None:
    """With a short run length on purpose: the mean time to an alarm is at least that."""
    times = []
    for seed in range(20):
        watch = Drift(0.05, 100_000, run_length=500)
        p = uniform(5000, seed)
        for number, one in enumerate(p):
            watch.see([one])
            if watch.alarm:
                times.append(number + 1)
                break
        else:
            times.append(len(p))
    assert np.mean(times) >= 500


def test_a_look_begins_it_again() -> None:
    watch = Drift(0.01, ROWS)
    watch.see([0.001] * 200)
    assert watch.alarm
    watch.reset()
    assert watch.evidence == 0
    assert watch.alarm == ""
