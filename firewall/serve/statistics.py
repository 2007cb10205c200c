"""Counts and durations of one model's inferences, as Triton's statistics extension reports them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from firewall.screening.span import Span


@dataclass(frozen=True)
class Duration:
    """How often something happened, and the seconds it took in total."""

    count: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Statistics:
    """Of one model since it was opened.

    Attributes:
        rows: inferences.
        batches: executions.
        last: seconds since the epoch of the latest inference; 0 before the first.
        durations: by kind: success, fail, queue, compute_input, compute_infer, compute_output.

    """

    rows: int = 0
    batches: int = 0
    last: float = 0.0
    durations: dict[str, Duration] = field(default_factory=dict)

    def of(self, kind: str) -> Duration:
        """One duration; nothing where it never happened."""
        return self.durations.get(kind, Duration())


#: Stage of the data plane by the kind of duration that it counts for.
_KINDS = {"queue": "queue", "decode": "compute_input", "guard": "compute_infer"}


class StatisticsCounter:
    """Collects statistics. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows = self._batches = 0
        self._last = 0.0
        #: Count and seconds of each kind.
        self._durations: dict[str, list[float]] = {}

    def batch(self) -> None:
        """Count an execution."""
        with self._lock:
            self._batches += 1

    def answered(self, rows: int, seconds: float, spans: Sequence[Span]) -> None:
        """Count an answered request of so many rows, and the stages that it went through."""
        with self._lock:
            self._rows += rows
            self._last = time.time()
            self._add("success", seconds)
            for span in spans:
                kind = _KINDS.get(span.name)
                if kind is not None:
                    self._add(kind, span.end - span.start)

    def failed(self, seconds: float) -> None:
        """Count a request that failed."""
        with self._lock:
            self._add("fail", seconds)

    def read(self) -> Statistics:
        """Take a consistent copy."""
        with self._lock:
            durations = {
                kind: Duration(int(count), seconds)
                for kind, (count, seconds) in self._durations.items()
            }
            return Statistics(self._rows, self._batches, self._last, durations)

    def _add(self, kind: str, seconds: float) -> None:
        """Add one occurrence. Locked."""
        entry = self._durations.setdefault(kind, [0, 0.0])
        entry[0] += 1
        entry[1] += seconds
