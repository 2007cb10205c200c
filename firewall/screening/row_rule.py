"""A decision rule for one row at a time, in plain Python.

A server decides about one row or a few, where calling numpy costs more than what it computes. Bit
for bit the rule of the `Cascade` that makes it: the same tables, added in the same order.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """An active detector.

    Attributes:
        place: of its statistic among those of all detectors.
        reference: its statistics of part A, rising.

    """

    place: int
    reference: list[float]


class RowRule:
    """What `Cascade` does with arrays."""

    def __init__(
        self,
        columns: Sequence[Column],
        cheap: int,
        weights: list[float],
        *,
        harmonic: bool,
        threshold: float,
        groups: list[int],
        scores: list[list[float]],
    ) -> None:
        """Take the tables of a cascade.

        Args:
            columns: active detectors, the cheap ones first.
            cheap: how many of them are cheap.
            weights: [nA + 1] what a statistic adds, by how many of part A lie below it.
            harmonic: whether the sum becomes the logarithm of a mean.
            threshold: doubt from which on a row is escalated.
            groups: of classes.
            scores: by group, part B's, rising.

        """
        self._cheap = [(column.place, column.reference) for column in columns[:cheap]]
        self._all = [(column.place, column.reference) for column in columns]
        self.cheap_places = tuple(column.place for column in columns[:cheap])
        self.places = tuple(column.place for column in columns)
        self._weights, self._harmonic = weights, harmonic
        self.threshold = threshold
        self._groups, self._scores = groups, scores
        #: Whether a p-value depends on the class that the classifier names.
        self.asks_class = len(scores) > 1

    def doubt(self, statistics: Sequence[float]) -> float:
        """Of the cheap statistics of a row: 0 or more."""
        return self._combined(statistics, self._cheap)

    def score(self, doubt: float, statistics: Sequence[float] | None) -> float:
        """One number, higher is more suspicious.

        Args:
            doubt: of the row.
            statistics: of all detectors where the row was escalated, else None.

        """
        if statistics is None:
            return doubt / (1.0 + doubt)
        return 1.0 + self._combined(statistics, self._all)

    def p_value(self, score: float, said: int) -> float:
        """Conformal, in [1/(nB + 1), 1], of a row that the classifier calls `said`."""
        group = self._groups[min(said, len(self._groups) - 1)] if self.asks_class else 0
        clean = self._scores[group]
        return (1 + len(clean) - bisect_left(clean, score)) / (len(clean) + 1)

    def _combined(
        self, statistics: Sequence[float], columns: list[tuple[int, list[float]]]
    ) -> float:
        if not columns:
            return 0.0
        total, weights = 0.0, self._weights
        for place, reference in columns:
            total += weights[bisect_left(reference, statistics[place])]
        return math.log(total / len(columns)) if self._harmonic else total
