"""A decision rule for one row at a time, in plain Python.

A server decides about one row or a few, where calling numpy costs more than what it computes. Bit
for bit the rule of the `Cascade` that makes it: the same tables, added in the same order.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

#: The highest calibrated score of one statistic.
CAP = 60.0


@dataclass(frozen=True)
class Column:
    """How a statistic becomes a calibrated score.

    Attributes:
        place: of the statistic among those of all detectors.
        reference: its values of part A, rising.
        table: [nA + 1] score by how many of part A lie below a value.
        cut: value from which on scores rise in a straight line; infinite where they do not.
        base: score there.
        slope: of that line.
        weight: of the score in the sum.

    """

    place: int
    reference: list[float]
    table: list[float]
    weight: float = 1.0
    cut: float = math.inf
    base: float = 0.0
    slope: float = 0.0

    def score(self, value: float) -> float:
        """The weighted score of a value."""
        if value > self.cut:
            return self.weight * min(self.base + (value - self.cut) * self.slope, CAP)
        return self.weight * self.table[bisect_left(self.reference, value)]


@dataclass(frozen=True)
class Ranks:
    """Scores of part B that share a promise.

    Attributes:
        scores: rising.
        above: [n + 1] units (rows, or photographs of several rows) from each place on.

    """

    scores: list[float]
    above: list[float]

    def p_value(self, score: float) -> float:
        """Conformal p-value: the share of units that score as high, counting this one."""
        return (1 + self.above[bisect_left(self.scores, score)]) / (1 + self.above[0])


class RowRule:
    """What `Cascade` does with arrays."""

    def __init__(
        self,
        cheap: Sequence[Column],
        every: Sequence[Column],
        *,
        harmonic: bool,
        threshold: float,
        groups: list[int],
        ranks: Sequence[Ranks],
    ) -> None:
        """Take the tables of a cascade.

        Args:
            cheap: active detectors of the cheap tier, weighted as they are without the others.
            every: all active detectors, the cheap ones first.
            harmonic: whether the sum becomes the logarithm of a mean.
            threshold: doubt from which on a row is escalated.
            groups: of classes.
            ranks: by group.

        """
        self._cheap, self._every = tuple(cheap), tuple(every)
        self.cheap_places = tuple(column.place for column in cheap)
        self.places = tuple(column.place for column in every)
        self._harmonic = harmonic
        self.threshold = threshold
        self._groups, self._ranks = groups, ranks
        #: Whether a p-value depends on the class that the classifier names.
        self.asks_class = len(ranks) > 1

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
        return 1.0 + self._combined(statistics, self._every)

    def p_value(self, score: float, said: int) -> float:
        """Conformal, of a row that the classifier calls `said`."""
        group = self._groups[min(said, len(self._groups) - 1)] if self.asks_class else 0
        return self._ranks[group].p_value(score)

    def _combined(self, statistics: Sequence[float], columns: tuple[Column, ...]) -> float:
        if not columns:
            return 0.0
        total = 0.0
        for column in columns:
            total += column.score(statistics[column.place])
        return math.log(total / len(columns)) if self._harmonic else total
