"""Certificates: how far an image may be moved before its class can change. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.screening.compiled import GuardGraphs

#: Radii are answered in this many parts of the largest that is tried: one graph run each halving.
PARTS = 32


@dataclass(frozen=True)
class Certificate:
    """About one row.

    Attributes:
        label: the class that holds.
        norm: `linf` or `l2`.
        radius: where values lie in [0, 1]; no image within it has another class. 0 is none.
        confidence: 1 for a deterministic certificate, else the probability that it holds.

    """

    label: int
    norm: str
    radius: float
    confidence: float


def interval_certificates(
    compiled: GuardGraphs, wire: npt.NDArray[Any], largest: float
) -> list[Certificate]:
    """The largest radius that interval bounds certify, row by row, by halving.

    Bounds grow with the radius, so what holds at one holds at all below.

    Args:
        compiled: whose classifier is bounded.
        wire: [N, *input shape].
        largest: radius beyond which nothing is tried.

    """
    rows = len(wire)
    good = np.zeros(rows, np.int64)
    step = PARTS
    label = np.zeros(rows, np.int64)
    while step:
        tried = np.minimum(good + step, PARTS)
        radius = (tried * (largest / PARTS)).astype(np.float32)
        label, lead = compiled.certify(wire, radius)
        good = np.where(lead > 0, tried, good)
        step //= 2
    return [
        Certificate(int(label[row]), "linf", float(good[row] * (largest / PARTS)), 1.0)
        for row in range(rows)
    ]
