"""Precision, recall, density and coverage of generated images, by nearest neighbours of features.

Each figure is meaningful only beside that of real training images, and only for one extractor.
torchmetrics has no such scores, so they are computed here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float64]
#: Rows of a distance matrix that are computed at a time.
_ROWS = 2048


@dataclass(frozen=True)
class Coverage:
    """How far generated and real features overlap; all but density are between 0 and 1.

    The neighbourhood of a row reaches to its k-th nearest neighbour of the same set.

    Attributes:
        precision: share of generated rows inside the neighbourhood of a real row (Kynkäänniemi et
            al. 2019, arXiv:1904.06991). Low if images look wrong.
        recall: share of real rows inside the neighbourhood of a generated row. Low if some kinds of
            images are never generated.
        density: mean number of real neighbourhoods around a generated row, divided by k; above 1 if
            generated rows crowd into dense regions (Naeem et al. 2020, arXiv:2002.09797).
        coverage: share of real rows whose neighbourhood contains a generated row. Unlike recall, it
            is not raised by generated outliers.

    """

    precision: float
    recall: float
    density: float
    coverage: float


def coverage(real: Features, generated: Features, *, neighbours: int = 5) -> Coverage:
    """Compare two sets of features by distances to the k-th neighbour.

    Args:
        real: [N, F] features, N above k.
        generated: [M, F] features; M should be close to N.
        neighbours: k.

    """
    reach = _reach(real, neighbours)
    other = _reach(generated, neighbours)
    held = np.zeros(len(generated), np.int64)
    recalled = np.zeros(len(real), np.bool_)
    covered = np.zeros(len(real), np.bool_)
    for start in range(0, len(real), _ROWS):
        rows = slice(start, start + _ROWS)
        apart = distances(real[rows], generated)
        inside = apart < reach[rows, None]
        held += inside.sum(axis=0)
        recalled[rows] = (apart < other[None]).any(axis=1)
        covered[rows] = apart.min(axis=1) < reach[rows]
    return Coverage(
        precision=float((held > 0).mean()),
        recall=float(recalled.mean()),
        density=float(held.mean() / neighbours),
        coverage=float(covered.mean()),
    )


def _reach(features: Features, neighbours: int) -> Features:
    """Distance of each row to its k-th nearest other row, [N]."""
    radii = np.empty(len(features))
    for start in range(0, len(features), _ROWS):
        apart = distances(features[start : start + _ROWS], features)
        # Index 0 is the row itself, at distance 0.
        radii[start : start + _ROWS] = np.partition(apart, neighbours, axis=1)[:, neighbours]
    return radii


def distances(x: Features, y: Features) -> Features:
    """Euclidean distances between the rows of two sets, [N, M]."""
    squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None] - 2.0 * x @ y.T
    apart: Features = np.sqrt(squares.clip(0))
    return apart
