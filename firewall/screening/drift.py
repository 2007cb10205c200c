"""Whether the promised false-positive rate still holds on the traffic that comes. Imports no torch.

On inputs like those of calibration, p-values are uniform. What is watched is how often they fall
below a few levels: below the policy's rate, where refusals are, and below a tenth and a half, where
a camera that has changed shows long before it is refused.

Calibration itself was a sample: with n rows, the true share of inputs like them below a level is
only known to lie within a Beta distribution's bounds. A share within these is no evidence. Beyond
them, evidence is gathered by an e-detector (Shin, Ramdas, Rinaldo 2023, arXiv:2203.03532):
likelihood ratios against several worse shares, each begun anew whenever beginning anew is better.
While nothing has changed, the mean number of rows before a false alarm is at least `run_length`,
whenever one looks.

What it cannot tell is why. Many attacks at once raise it as well as a new lens does.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np

#: Levels besides the policy's rate.
_LEVELS = (0.1, 0.5)
#: Alternatives: the odds of a share below a level, times these or over them.
_FACTORS = (1.5, 2.5, 5.0)
#: Confidence of the bounds that calibration leaves.
_CONFIDENCE = 0.999
#: Logarithms beyond which evidence grows no more; it has said enough.
_ENOUGH = 500.0


@dataclass(frozen=True)
class _Test:
    """One level, one direction.

    Attributes:
        level: of p-values.
        more: whether too many lie below it, or too few.
        first, last: where its alternatives lie among those of all tests.

    """

    level: float
    more: bool
    first: int
    last: int


class Drift:
    """Follows p-values, one at a time; not thread-safe."""

    def __init__(self, rate: float, rows: int, *, run_length: float = 1e6) -> None:
        """Begin without evidence.

        Args:
            rate: false positives that the policy promises.
            rows: of the second part of calibration, against which p-values are ranked.
            run_length: mean number of rows before a false alarm, at least.

        """
        self._tests: list[_Test] = []
        #: Of each alternative, what a p-value at or below the level and one above add to the
        #: logarithm of evidence.
        steps: list[tuple[float, float]] = []
        levels: list[float] = []
        for level in (rate, *(one for one in _LEVELS if one > rate)):
            low, high = bounds(level, rows)
            for more, share in ((True, high), (False, low)):
                if not 0 < share < 1:
                    # So few rows that any share could be.
                    continue
                first = len(steps)
                for factor in _FACTORS:
                    odds = share / (1 - share) * (factor if more else 1 / factor)
                    worse = odds / (1 + odds)
                    steps.append((math.log(worse / share), math.log((1 - worse) / (1 - share))))
                    levels.append(level)
                self._tests.append(_Test(level, more, first, len(steps)))
        # What a p-value adds depends on the levels that it is below of alone.
        self._bounds = sorted(set(levels))
        #: By how many levels a p-value is above of, what it adds to each alternative.
        self._adds = [
            [
                hit if self._bounds.index(level) >= above else miss
                for level, (hit, miss) in zip(levels, steps, strict=True)
            ]
            for above in range(len(self._bounds) + 1)
        ]
        self._evidence = [0.0] * len(steps)
        # Each test may have its own false alarms: together no more than one has.
        self._threshold = math.log(run_length * max(1, len(self._tests)))
        self.rows = 0

    def see(self, p_values: Iterable[float]) -> None:
        """Take in p-values, in order."""
        evidence = self._evidence
        for p_value in p_values:
            self.rows += 1
            adds = self._adds[bisect_left(self._bounds, p_value)]
            # Begun anew wherever the past speaks against it.
            evidence = [
                (past if past > 0.0 else 0.0) + add
                for past, add in zip(evidence, adds, strict=True)
            ]
            if max(evidence, default=0.0) > _ENOUGH:
                evidence = [min(_ENOUGH, one) for one in evidence]
        self._evidence = evidence

    def _value(self, test: _Test) -> float:
        """Logarithm of the mean over its alternatives."""
        own = self._evidence[test.first : test.last]
        top = max(own)
        return top + math.log(sum(math.exp(one - top) for one in own) / len(own))

    @property
    def evidence(self) -> float:
        """From 0, none, to 1, an alarm, and beyond."""
        if not self._tests:
            return 0.0
        return max(0.0, max(self._value(test) for test in self._tests) / self._threshold)

    @property
    def alarm(self) -> str:
        """What has changed; empty while nothing has."""
        # A mean is no greater than the greatest: as a rule one look is enough.
        if max(self._evidence, default=0.0) < self._threshold or self.evidence < 1:
            return ""
        worst = max(self._tests, key=self._value)
        return (
            f"{'more' if worst.more else 'fewer'} p-values below {worst.level:g} than calibration "
            "allows: inputs are no longer like those of calibration, or many of them are attacks"
        )

    def reset(self) -> None:
        """Begin again, as after a look or a recalibration."""
        self._evidence = [0.0] * len(self._evidence)


@cache
def bounds(level: float, rows: int) -> tuple[float, float]:
    """Between which the true share of p-values at most `level` lies, given the calibration.

    With n rows and k = floor(level (n + 1)), the share of new rows ranked among the k highest is
    Beta(k, n + 1 - k) distributed over calibrations (Vovk 2012, arXiv:1209.2673).

    Returns:
        The middle `_CONFIDENCE` of it; (0, 1) where the rows are too few for the level.

    """
    rank = math.floor(level * (rows + 1) + 1e-9)
    if rank < 1 or rank > rows:
        return 0.0, 1.0
    tail = (1 - _CONFIDENCE) / 2
    return _beta_quantile(rank, rows + 1 - rank, tail), _beta_quantile(
        rank, rows + 1 - rank, 1 - tail
    )


def _beta_quantile(a: int, b: int, probability: float) -> float:
    """Of Beta(a, b) with whole parameters, by halving: its distribution function is a binomial
    tail, so a server needs no more than numpy.
    """
    trials = a + b - 1
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    hits = np.arange(a, trials + 1)
    ways = factorials[trials] - factorials[hits] - factorials[trials - hits]
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        logs = ways + hits * math.log(middle) + (trials - hits) * math.log1p(-middle)
        if float(np.exp(logs).sum()) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2
