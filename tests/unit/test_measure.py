from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from firewall.evaluation.measure import auroc, cluster_interval, false_positives, wilson


@pytest.mark.parametrize(("hits", "trials"), [(0, 7), (3, 50), (50, 100), (20, 20)])
def test_wilson_is_scipys(hits: int, trials: int) -> None:
    expected = binomtest(hits, trials).proportion_ci(method="wilson")
    assert wilson(hits / trials, trials) == pytest.approx((expected.low, expected.high))


def test_auroc_is_scikit_learns_with_ties() -> None:
    rng = np.random.default_rng(0)
    clean, attacked = rng.integers(0, 8, 200) * 1.0, rng.integers(2, 10, 150) * 1.0
    truth = np.r_[np.zeros(200), np.ones(150)]
    assert auroc(clean, attacked) == pytest.approx(roc_auc_score(truth, np.r_[clean, attacked]))


def test_groups_that_agree_count_once() -> None:
    hits = np.repeat([True, False, False, True, False, False, False], 10)
    groups = np.repeat(np.arange(7), 10)
    assert cluster_interval(hits, groups) == pytest.approx(wilson(2 / 7, 7), abs=0.03)
    low, high = cluster_interval(np.zeros(70, bool), groups)
    assert low == pytest.approx(0, abs=1e-12)
    assert high == pytest.approx(wilson(0, 7)[1])


def test_groups_that_do_not_matter_cost_nothing() -> None:
    rng = np.random.default_rng(0)
    hits = rng.random(5000) < 0.2
    groups = np.arange(5000) % 500
    assert cluster_interval(hits, groups) == pytest.approx(wilson(hits.mean(), 5000), abs=0.005)


def test_false_positives_counts_at_each_rate() -> None:
    p = np.array([0.005, 0.03, 0.2, 0.9])
    found = false_positives(p, np.array([0, 0, 1, 1]))
    assert (found["0.01"]["rejected"], found["0.05"]["rejected"]) == (1, 2)
    assert (found["rows"], found["photographs"]) == (4, 2)
