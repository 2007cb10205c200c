"""A candidate guard that sees a share of the live traffic and answers nobody.

It runs in a thread of its own behind a bounded queue. Requests that do not fit the queue are left
out and counted, so that live answers never wait.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from firewall.screening.verdict import Answer
from firewall.serve.context import RequestContext
from firewall.serve.metrics import Metrics

if TYPE_CHECKING:
    from firewall.serve.model import ServedModel

log = logging.getLogger(__name__)

#: Requests that wait for the candidate at most.
MAX_QUEUED_REQUESTS = 64

_Work = tuple[npt.NDArray[Any], Answer, str]


class Shadow:
    """Compares a candidate's verdicts and classes with the live ones."""

    def __init__(self, candidate: ServedModel, percent: float, metrics: Metrics) -> None:
        """Start the thread.

        Args:
            candidate: has passed its self-test.
            percent: of requests, in (0, 100].
            metrics: told of every row that was compared.

        """
        self.candidate, self.percent = candidate, percent
        self._metrics = metrics
        self._queue: queue.Queue[_Work | None] = queue.Queue(MAX_QUEUED_REQUESTS)
        self._stopped = threading.Event()
        #: Rows by the two verdicts, live and candidate's.
        self.verdicts: Counter[tuple[str, str]] = Counter()
        #: Rows whose classes differ, and requests that were left out or failed.
        self.labels = self.dropped = self.failed = 0
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    @property
    def rows(self) -> int:
        """Rows compared so far."""
        return sum(self.verdicts.values())

    @property
    def differing(self) -> int:
        """Compared rows on which the verdicts differ."""
        return sum(count for (live, other), count in self.verdicts.items() if live != other)

    def observe(self, rows: npt.NDArray[Any], answer: Answer, context: RequestContext) -> None:
        """Queue a share of the answered requests for comparison."""
        if self._stopped.is_set() or random.random() * 100 >= self.percent:
            return
        try:
            # A copy: the batch is a view of the whole message.
            self._queue.put_nowait((rows.copy(), answer, context.client))
        except queue.Full:
            self.dropped += 1
            self._metrics.shadow_dropped(self.candidate.name)

    def stop(self, timeout: float = 5.0) -> None:
        """Stop comparing."""
        self._stopped.set()
        # When it is full, the thread looks at the event after what it has in hand.
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None and not self._stopped.is_set():
            try:
                self._compare(*work)
            except Exception:  # a failing candidate must not end the comparison
                log.exception("the shadow of %s failed on a request", self.candidate.name)
                self.failed += 1
                self._metrics.shadow_failed(self.candidate.name)

    def _compare(self, rows: npt.NDArray[Any], answer: Answer, client: str) -> None:
        guard = self.candidate.guard
        other = guard.screen(rows, (guard.plan(client),) * len(rows))
        differs = answer.classes != other.classes
        for row, (live, mine) in enumerate(zip(answer.decisions, other.decisions, strict=True)):
            verdicts = (live.verdict.value, mine.verdict.value)
            self.verdicts[verdicts] += 1
            self.labels += int(differs[row])
            self._metrics.shadowed(self.candidate.name, *verdicts, label=bool(differs[row]))
