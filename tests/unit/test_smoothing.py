"""Randomised smoothing: its table, its votes, and what it promises."""

from __future__ import annotations

import json
import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import binomtest, norm

from firewall.bundle.spec import InputSpec
from firewall.errors import BundleMalformed
from firewall.screening.preprocess import add_to_wire, to_wire
from firewall.screening.smoothing import Smoothing
from firewall.train.smoothing_table import SmoothingSpec, tabulate

SPEC = SmoothingSpec(sigma=0.5, selection=50, draws=400, failure=0.01)
INPUT = InputSpec(channels=1, height=8, width=8)


def half_space(wire: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Class 1 where the mean is over a half: its true smoothed radius is known."""
    return (wire.reshape(len(wire), -1).mean(axis=1) > 0.5).astype(np.intp)


def test_the_table_is_clopper_and_pearsons() -> None:
    table = tabulate(SPEC)
    assert len(table.radii) == 401
    for count in (150, 200, 230, 390, 400):
        interval = binomtest(count, 400, alternative="greater").proportion_ci(0.99, "exact")
        expected = max(0.0, 0.5 * float(norm.ppf(interval.low)))
        assert table.radii[count] == pytest.approx(expected, abs=1e-6)
    assert table.radii[200] == 0
    assert 0 < table.radii[240] < table.radii[400]


def test_certificates_of_a_half_space_hold_as_often_as_promised() -> None:
    """The smoothed half space has its own border: the distance to it is the true radius."""
    table, rng = tabulate(SPEC), np.random.default_rng(0)
    wire = np.full((300, 1, 8, 8), 0.5 + 0.06, np.float32)
    found = table.certify(half_space, wire, INPUT, rng)
    true = 0.06 * math.sqrt(64)
    broken = sum(one.radius > true for one in found)
    assert broken <= 300 * 0.01 + 4 * math.sqrt(3)
    # And they say something: more than half of what is true, on average.
    assert np.mean([one.radius for one in found]) > 0.5 * true
    assert {(one.label, one.norm, one.confidence) for one in found} == {(1, "l2", 0.99)}


def test_a_close_vote_abstains() -> None:
    table = tabulate(SPEC)
    wire = np.full((5, 1, 8, 8), 0.5, np.float32)
    found = table.certify(half_space, wire, INPUT, np.random.default_rng(1))
    assert [one.radius for one in found] == [0.0] * 5


@pytest.mark.parametrize(
    "spec",
    [
        INPUT,
        InputSpec(channels=3, height=8, width=8, layout="NHWC", datatype="UINT8", high=255),
        InputSpec(channels=3, height=8, width=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
        InputSpec(channels=1, height=8, width=8, low=-1.0, high=1.0, layout="NHWC"),
    ],
)
def test_noise_is_added_in_the_wires_own_units(spec: InputSpec) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(60, 120, (1, 8, 8, spec.channels), dtype=np.uint8)
    change = rng.integers(0, 60, (4, spec.channels, 8, 8)).astype(np.float32)
    changed = add_to_wire(to_wire(pixels, spec)[0], change / 255, spec)
    expected = to_wire((pixels + change.transpose(0, 2, 3, 1)).astype(np.uint8), spec)
    assert changed.dtype == expected.dtype
    assert np.allclose(changed, expected, atol=1e-5)


def test_bytes_stay_bytes() -> None:
    spec = InputSpec(channels=1, height=8, width=8, datatype="UINT8", high=255)
    row = np.full((1, 8, 8), 250, np.uint8)
    changed = add_to_wire(row, np.stack([np.full((1, 8, 8), v, np.float32) for v in (2, -2)]), spec)
    assert (changed[0] == 255).all()
    assert (changed[1] == 0).all()


def test_it_survives_json_and_refuses_what_is_none() -> None:
    table = tabulate(SPEC)
    assert Smoothing.from_json(table.to_json()) == table
    body = json.loads(table.to_json())
    for change in (
        {"sigma": 0}, {"radii": body["radii"][:-1]}, {"radii": body["radii"][::-1]},
        {"failure": 2}, {"draws": "many"}, {"radii": [math.inf] * 401},
    ):  # fmt: skip
        with pytest.raises(BundleMalformed, match=r"smoothing\.json"):
            Smoothing.from_json(json.dumps(body | change).encode())
