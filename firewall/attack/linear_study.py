"""Why small changes have large effects: the linear explanation (Goodfellow et al. 2015, section 3).

A linear score w . x changes by at most radius * |w|_1 when no value moves by more than the radius,
and sign(w) is the direction that reaches it: the effect grows with the number of dimensions, while
the change of each value stays as small. A step of the same largest value along w itself does less.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: The lecture's example: from -4 to 1.6 by a fifth of w.
LECTURE_W = (1.0, 3.0, -1.0, 2.0, 2.0, 3.0)
LECTURE_X = (1.0, -1.0, 2.0, 0.0, 3.0, -2.0)


@dataclass(frozen=True)
class LinearEffect:
    """Of one dimension, means over random weights of unit variance.

    Attributes:
        dimension: number of values.
        sign: change of the score by radius * sign(w).
        along: by the step along w whose largest value is the radius.
        random: by random signs, in absolute value.

    """

    dimension: int
    sign: float
    along: float
    random: float


def study(
    radius: float = 0.1,
    dimensions: tuple[int, ...] = (1, 10, 100, 784, 3072, 150_528),
    draws: int = 100,
    seed: int = 0,
) -> list[LinearEffect]:
    """How the effect of a fixed radius grows with the dimension."""
    generator = np.random.default_rng(seed)
    found: list[LinearEffect] = []
    for dimension in dimensions:
        rows: list[tuple[float, float, float]] = []
        for _ in range(draws):
            w = generator.standard_normal(dimension)
            signs = generator.integers(0, 2, dimension) * 2 - 1
            rows.append(
                (
                    radius * float(np.abs(w).sum()),
                    radius * float(w @ w) / float(np.abs(w).max()),
                    radius * abs(float(w @ signs)),
                )
            )
        sign, along, random = np.mean(rows, axis=0)
        found.append(LinearEffect(dimension, float(sign), float(along), float(random)))
    return found


def draw(found: list[LinearEffect], radius: float, path: Path) -> None:
    """The study as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    across = [one.dimension for one in found]
    for name, values, mark in (
        ("sign(w)", [one.sign for one in found], "o-"),
        ("along w", [one.along for one in found], "s--"),
        ("random signs", [one.random for one in found], "^:"),
    ):
        axes.loglog(across, values, mark, label=name)
    axes.set_xlabel("dimensions")
    axes.set_ylabel(f"change of w·x, no value moved by more than {radius:g}")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
