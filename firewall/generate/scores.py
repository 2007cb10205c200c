"""Scores of generated images by the features that an extractor gives them.

They say something only beside a floor (real training against real test images) and a ceiling
(noise, or one image again and again), and only by one extractor: its hash belongs beside each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float64]
#: Rows of a distance matrix that are computed at a time.
_ROWS = 2048


def inception_score(log_probabilities: Features, splits: int = 10) -> tuple[float, float]:
    """Exponential of the mean divergence of p(y|x) from p(y) (Salimans et al. 2016).

    Args:
        log_probabilities: [N, K] of a classifier.
        splits: parts over which it is averaged.

    Returns:
        Mean and standard deviation over the parts, from 1 to K. High where each image is clearly of
        a class and all classes come up; blind to whether the images are real.

    """
    found = []
    for part in np.array_split(log_probabilities, splits):
        p = np.exp(part)
        marginal = np.log(p.mean(axis=0) + 1e-300)
        found.append(np.exp((p * (part - marginal)).sum(axis=1).mean()))
    return float(np.mean(found)), float(np.std(found))


def frechet_distance(real: Features, generated: Features) -> float:
    """Squared distance of two normal distributions (Heusel et al. 2017, arXiv:1706.08500).

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). Few rows bias it upwards: compare at equal numbers.

    Args:
        real: [N, F] features.
        generated: [M, F].

    """
    first, second = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    # The eigenvalues of S1 S2 are those of the symmetric S1^(1/2) S2 S1^(1/2).
    values, vectors = np.linalg.eigh(np.atleast_2d(first))
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ np.atleast_2d(second) @ root)
    apart = real.mean(axis=0) - generated.mean(axis=0)
    total = (
        apart @ apart + np.trace(np.atleast_2d(first)) + np.trace(np.atleast_2d(second))
        - 2.0 * np.sqrt(inner.clip(0)).sum()
    )  # fmt: skip
    return float(max(total, 0.0))


def kernel_distance(
    real: Features, generated: Features, *, subsets: int = 50, rows: int = 500, seed: int = 0
) -> tuple[float, float]:
    """KID: squared maximum mean discrepancy with the kernel (x.y / F + 1)^3, unbiased (Bińkowski et
    al. 2018, arXiv:1801.01401).

    Args:
        real: [N, F] features.
        generated: [M, F].
        subsets: over which it is averaged.
        rows: of a subset.
        seed: of their choice.

    Returns:
        Mean and standard deviation over the subsets; it may be a little below 0.

    """
    rng = np.random.default_rng(seed)
    rows = min(rows, len(real), len(generated))
    found = []
    for _ in range(subsets):
        x = real[rng.choice(len(real), rows, replace=False)]
        y = generated[rng.choice(len(generated), rows, replace=False)]
        within = sum(_kernel(one, one).sum() - np.trace(_kernel(one, one)) for one in (x, y))
        found.append(within / (rows * (rows - 1)) - 2.0 * _kernel(x, y).mean())
    return float(np.mean(found)), float(np.std(found))


def _kernel(x: Features, y: Features) -> Features:
    kernel: Features = (x @ y.T / x.shape[1] + 1.0) ** 3
    return kernel


@dataclass(frozen=True)
class Coverage:
    """How two clouds of features lie in each other; each but density is from 0 to 1.

    Attributes:
        precision: share of generated rows within reach of a real one (Kynkäänniemi et al. 2019,
            arXiv:1904.06991): are they good?
        recall: share of real rows within reach of a generated one: is all of it there?
        density: how many real neighbourhoods a generated row lies in, of those that there are per
            row; over 1 where they crowd the middle (Naeem et al. 2020, arXiv:2002.09797).
        coverage: share of real rows whose neighbourhood holds a generated one; unlike recall not
            flattered by outliers.

    """

    precision: float
    recall: float
    density: float
    coverage: float


def coverage(real: Features, generated: Features, *, neighbours: int = 5) -> Coverage:
    """Precision, recall, density and coverage by distances to the k-th neighbour.

    Args:
        real: [N, F] features.
        generated: [M, F], about as many.
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
    """[N]: distance to the k-th nearest other row."""
    found = np.empty(len(features))
    for start in range(0, len(features), _ROWS):
        apart = distances(features[start : start + _ROWS], features)
        # The nearest is the row itself.
        found[start : start + _ROWS] = np.partition(apart, neighbours, axis=1)[:, neighbours]
    return found


def distances(x: Features, y: Features) -> Features:
    """[N, M] Euclidean distances."""
    squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None] - 2.0 * x @ y.T
    apart: Features = np.sqrt(squares.clip(0))
    return apart
