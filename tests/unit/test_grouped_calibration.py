"""The promise by photograph, and the learnt combination."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from firewall.attack.adaptive import Evasion, Way
from firewall.errors import BundleMalformed, CalibrationError, SampleTooSmall
from firewall.screening.calibration import Calibration, Cascade, Weights
from firewall.train.combine import fit_weights, with_learnt_weights

NAMES = ("a", "b", "c")


def rows_of(photographs: int, each: int, rng: np.random.Generator) -> np.ndarray:
    """Statistics of photographs that are far more like themselves than like each other."""
    own = rng.standard_normal((photographs, 1, 3))
    return np.exp(own + 0.2 * rng.standard_normal((photographs, each, 3))).reshape(-1, 3)


def learnt(photographs: int, each: int, rng: np.random.Generator) -> Calibration:
    return Calibration(
        NAMES, 2, rows_of(60, 2, rng), rows_of(photographs, each, rng), 0.5,
        combination="learnt", weights=Weights((1.0, 0.5), (1.0, 0.5, 2.0)),
        photographs=np.repeat(np.arange(photographs), each),
    )  # fmt: skip


def p_values(cascade: Cascade, statistics: np.ndarray) -> np.ndarray:
    doubt = cascade.doubt(statistics[:, : 2 if cascade.has_expensive else 3])
    escalated = cascade.escalates(doubt)
    scores = cascade.scores(doubt, escalated, statistics[escalated])
    return cascade.p_values(scores, np.zeros(len(scores), np.int64))


@pytest.mark.parametrize("photographs", [9, 19, 49, 99])
def test_the_fewest_photographs_that_promise_a_rate_refuse_what_is_beyond_all(
    photographs: int,
) -> None:
    """Twelve twelfths of a photograph are one, whatever floats make of them."""
    for each in (3, 7, 12):
        calibration = learnt(photographs, each, np.random.default_rng(each))
        cascade = calibration.cascade(1 / (photographs + 1))
        assert p_values(cascade, np.full((1, 3), 1e6)) <= 1 / (photographs + 1)
        assert np.isfinite(cascade.score_ceilings).all()


def test_the_promise_by_photograph_is_kept_where_rows_of_one_are_alike() -> None:
    """A new photograph's row, over 400 draws; rows as if they stood for themselves break it."""
    rate, kept, broken = 0.1, [], []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        by_photograph = learnt(12, 12, rng)
        rows = rows_of(100, 1, rng)
        kept.append((p_values(by_photograph.cascade(rate), rows) <= rate).mean())
        naive = dataclasses.replace(by_photograph, photographs=None)
        broken.append((p_values(naive.cascade(rate), rows) <= rate).mean())
    error = np.std(kept) / np.sqrt(len(kept))
    assert np.mean(kept) <= rate + 3 * error
    assert np.mean(broken) > rate + 3 * error


def test_a_photograph_counts_once_however_many_rows_it_has() -> None:
    rng = np.random.default_rng(0)
    one = learnt(40, 1, rng)
    # The same photographs, one of them a hundred times.
    again = np.concatenate([one.part_b, np.repeat(one.part_b[:1], 99, axis=0)])
    numbers = np.concatenate([np.arange(40), np.zeros(99, np.int64)])
    crowded = dataclasses.replace(one, part_b=again, photographs=numbers)
    rows = rows_of(50, 1, rng)
    assert np.allclose(p_values(one.cascade(0.1), rows), p_values(crowded.cascade(0.1), rows))
    assert crowded.units == 40


def test_a_rate_that_fewer_photographs_than_it_takes_cannot_promise_is_refused() -> None:
    one = learnt(60, 12, np.random.default_rng(0))
    with pytest.raises(SampleTooSmall, match="from 60 calibration photographs; it takes 99"):
        one.cascade(0.01)


def test_a_learnt_combination_survives_its_bundle() -> None:
    one = learnt(30, 3, np.random.default_rng(1))
    again = Calibration.from_json(one.to_json())
    assert again.weights == one.weights
    assert again.photographs is not None
    assert again.photographs.tolist() == one.photographs.tolist()  # type: ignore[union-attr]
    rows = rows_of(40, 1, np.random.default_rng(2))
    assert np.array_equal(p_values(again.cascade(0.05), rows), p_values(one.cascade(0.05), rows))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"weights": None}, "weights: a learnt combination has them"),
        ({"weights": Weights((1.0,), (1.0, 1.0, 1.0))}, "cheap takes 2 numbers"),
        ({"weights": Weights((1.0, -1.0), (1.0, 1.0, 1.0))}, "cheap takes 2 numbers"),
        ({"weights": Weights((1.0, 1.0), (1.0, np.nan, 1.0))}, "every takes 3 numbers"),
        ({"photographs": np.zeros(3, np.int64)}, "photographs: expected one for each of 60"),
        ({"said_a": np.zeros(120, np.int64), "said_b": np.zeros(60, np.int64)}, "single rows"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], complaint: str) -> None:
    one = learnt(20, 3, np.random.default_rng(0))
    with pytest.raises(CalibrationError, match=complaint):
        dataclasses.replace(one, **change)  # type: ignore[arg-type]


def test_weights_in_a_bundle_are_checked() -> None:
    text = learnt(20, 3, np.random.default_rng(0)).to_json().decode()
    with pytest.raises(BundleMalformed, match=r"calibration\.json"):
        Calibration.from_json(text.replace('"every": [1.0', '"every": ["much"').encode())


def test_scores_go_on_beyond_the_calibration_rows() -> None:
    """Two forgeries beyond all of part A are not alike: the farther one is more suspicious."""
    cascade = learnt(60, 1, np.random.default_rng(0)).cascade(0.1)
    near, far = np.full((1, 2), 30.0), np.full((1, 2), 60.0)
    assert cascade.doubt(far)[0] > cascade.doubt(near)[0]


def test_weights_are_learnt_from_forgeries() -> None:
    """A statistic that sees forgeries weighs more than one that sees nothing, or the opposite."""
    rng = np.random.default_rng(0)
    benign, forged = rng.exponential(size=(400, 3)), rng.exponential(size=(300, 3))
    forged[:, 0] += 4.0
    forged[:, 2] *= 0.3
    weights = fit_weights(benign, forged)
    assert weights[0] > 0.5
    assert weights[0] > 5 * weights[1]
    assert weights[2] == pytest.approx(0.0, abs=1e-6)


def test_statistics_that_tell_nothing_weigh_alike() -> None:
    rng = np.random.default_rng(0)
    benign = rng.exponential(size=(300, 2)) + 1.0
    assert fit_weights(benign, benign - 1.0) == [1.0, 1.0]
    assert fit_weights(benign[:, :0], benign[:, :0]) == []


def test_the_learnt_combination_hears_the_detector_that_sees() -> None:
    """One of three statistics sees forgeries; Fisher's sum drowns it, learnt weights do not."""
    rng = np.random.default_rng(3)
    part_a, part_b, fresh = (rng.standard_normal((size, 3)) for size in (300, 400, 500))
    forged = rng.standard_normal((300, 3))
    forged[:, 0] += 3.0
    plain = Calibration(NAMES, 3, part_a, part_b, 1.0)
    taught = with_learnt_weights(plain, part_a, forged[:150])
    caught = {
        name: (p_values(one.cascade(0.02), forged[150:]) <= 0.02).mean()
        for name, one in (("fisher", plain), ("learnt", taught))
    }
    assert caught["learnt"] > caught["fisher"] + 0.1
    assert (p_values(taught.cascade(0.02), fresh) <= 0.02).mean() < 0.05


@pytest.mark.parametrize("way", ["cheap", "both"])
def test_an_adaptive_attack_follows_the_combination(way: Way) -> None:
    """What is refused is over the attack's ceiling, what is under it passes; there is a slope."""
    rng = np.random.default_rng(3)
    calibration = learnt(120, 2, rng)
    cascade = calibration.cascade(0.02)
    guard = SimpleNamespace(calibration=calibration)
    evasion = Evasion.of(guard, cascade, way)  # type: ignore[arg-type]
    rows = rows_of(300, 1, rng) * np.exp(2 * rng.standard_normal((300, 1)))
    doubt = cascade.doubt(rows[:, :2])
    if way == "cheap":
        passes = ~cascade.escalates(doubt)
    else:
        every = np.ones(len(rows), bool)
        scores = cascade.scores(doubt, every, rows)
        passes = cascade.p_values(scores, np.zeros(len(rows), np.int64)) > 0.02
    statistics = torch.tensor(rows, dtype=torch.float32, requires_grad=True)
    excess = evasion.excess(statistics, torch.zeros(len(rows), dtype=torch.int64))
    assert (excess.detach().numpy()[~passes] > 0).all()
    assert passes[excess.detach().numpy() == 0].all()
    assert 30 < (excess > 0).sum() < 270
    [slope] = torch.autograd.grad(excess.sum(), statistics)
    assert (slope[excess > 0].abs().sum(dim=1) > 0).all()
    assert (slope >= 0).all()


@pytest.mark.parametrize("photographs", [20, 60])
def test_an_adaptive_attack_knows_the_ceiling_where_no_view_is_active(photographs: int) -> None:
    rng = np.random.default_rng(4)
    calibration = learnt(photographs, 2, rng)
    cascade = calibration.cascade(0.05, ("a", "b"))
    assert not cascade.has_expensive
    rows = rows_of(300, 1, rng) * np.exp(2 * rng.standard_normal((300, 1)))
    accepted = p_values_of_cheap(cascade, rows) > 0.05
    guard = SimpleNamespace(calibration=calibration)
    evasion = Evasion.of(guard, cascade, "cheap")  # type: ignore[arg-type]
    statistics = torch.tensor(rows, dtype=torch.float32)
    excess = evasion.excess(statistics, torch.zeros(len(rows), dtype=torch.int64)).numpy()
    assert (excess[~accepted] > 0).all()
    assert 0 < (excess > 0).sum() < 300


def p_values_of_cheap(cascade: Cascade, statistics: np.ndarray) -> np.ndarray:
    doubt = cascade.doubt(statistics[:, :2])
    nobody = np.zeros(len(doubt), bool)
    scores = cascade.scores(doubt, nobody, statistics[nobody])
    return cascade.p_values(scores, np.zeros(len(scores), np.int64))


def test_detectors_of_weight_zero_speak_where_the_others_are_switched_off() -> None:
    rng = np.random.default_rng(5)
    calibration = dataclasses.replace(
        learnt(60, 2, rng), weights=Weights((0.0, 1.0), (0.0, 1.0, 0.0))
    )
    alone = calibration.cascade(0.05, ("a",))
    rows = rows_of(200, 1, rng)
    found = p_values_of_cheap(alone, rows)
    assert len(np.unique(found)) > 10
    assert np.corrcoef(np.log(rows[:, 0]), found)[0, 1] < -0.5


def test_few_images_are_enough_to_fit_a_combination() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        calibration = Calibration(NAMES, 2, rows_of(8, 1, rng), rows_of(9, 1, rng), 0.2)
        found = with_learnt_weights(calibration, rows_of(20, 1, rng), rows_of(20, 1, rng) + 2)
        assert found.weights is not None
        assert found.escalation == 0.2
