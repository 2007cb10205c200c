"""Histograms for the hot path.

prometheus_client walks through the buckets and takes a lock for each number, and a request is
observed several times. These look the bucket up, take one lock, and are the same families when they
are read, without `_created`.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Observed:
    """Values under one set of labels."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._lock = threading.Lock()
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        place = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[place] += 1
            self._sum += value

    def read(self) -> tuple[list[int], float]:
        """Counts by bucket, the last without a bound, and the sum."""
        with self._lock:
            return list(self._counts), self._sum


class Histogram(Collector):
    """A family of them, in a registry."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> None:
        """Empty.

        Args:
            name: of the family.
            documentation: a line.
            labels: names of the labels.
            bounds: greatest value of each bucket, rising; one more takes what is beyond.

        """
        self._name, self._documentation, self._labels = name, documentation, tuple(labels)
        self._bounds = tuple(float(bound) for bound in bounds)
        self._children: dict[tuple[str, ...], Observed] = {}

    def at(self, *labels: str) -> Observed:
        """Where values under these labels are counted."""
        found = self._children.get(labels)
        if found is None:
            # Of two that come at once, one makes it for both.
            found = self._children.setdefault(labels, Observed(self._bounds))
        return found

    def collect(self) -> Iterator[Metric]:
        """As prometheus reads it."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, child in list(self._children.items()):
            counts, total = child.read()
            buckets, below = [], 0
            for bound, count in zip([*self._bounds, float("inf")], counts, strict=True):
                below += count
                buckets.append(("+Inf" if bound == float("inf") else str(bound), below))
            family.add_metric(labels, buckets, total)
        yield family

    def describe(self) -> Iterator[Metric]:
        """Name and kind, by which a registry knows twins."""
        yield HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
