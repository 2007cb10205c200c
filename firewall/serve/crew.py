"""One thread for many small requests.

While it computes a batch, the next messages arrive; then it takes all of them: each is brought to
where it needs its guard, the guard sees them together, and each is answered. Nothing is woken and
no lock changes hands between the requests of a batch. What needs long, or waits for somebody else,
goes to a thread of its own.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from firewall.serve.batcher import Batcher, Queued
from firewall.serve.scheduling import interrupt_nobody
from firewall.serve.staged import Pending, Steps, finish

log = logging.getLogger(__name__)

#: Requests of a round, at most: the first is to be answered soon.
_ROUND = 64


class Crew:
    """Answers requests given as steps. Nothing runs before the first."""

    def __init__(self, elsewhere: Callable[[Callable[[], Any]], Any]) -> None:
        """Take no thread yet.

        Args:
            elsewhere: runs a task in a thread that may wait.

        """
        self._elsewhere = elsewhere
        self._inbox: deque[Steps[None]] = deque()
        self._wake = threading.Condition(threading.Lock())
        self._asleep = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def give(self, steps: Steps[None]) -> None:
        """A request, which answers for itself. Never waits."""
        self._inbox.append(steps)
        if self._asleep or self._thread is None:
            with self._wake:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="crew", daemon=True)
                    self._thread.start()
                self._wake.notify()

    def close(self, timeout: float) -> None:
        """Answer what is there, and end, within some seconds."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        interrupt_nobody()
        while True:
            with self._wake:
                # Told before it is looked: who gives after that look sees it, and wakes us.
                self._asleep = True
                while not self._inbox:
                    if self._closed:
                        return
                    self._wake.wait()
                self._asleep = False
            try:
                self._round()
            except BaseException:
                # Requests answer for what they raise; this is nobody's, and the thread is needed.
                log.exception("a round of requests failed")

    def _round(self) -> None:
        inbox = self._inbox
        begun = [inbox.popleft() for _ in range(min(len(inbox), _ROUND))]
        self._sort([(steps, self._advance(steps)) for steps in begun])

    def _sort(self, every: list[tuple[Steps[None], Pending | None]]) -> None:
        """Compute together what waits for one guard, and go on, until every request has ended or
        is elsewhere.
        """
        while every:
            groups: dict[Batcher[Any, Any], list[tuple[Steps[None], Queued[Any, Any]]]] = {}
            for steps, pending in every:
                if pending is None:
                    continue
                if isinstance(pending, Queued) and pending.batcher.light:
                    groups.setdefault(pending.batcher, []).append((steps, pending))
                else:
                    self._hand_over(steps, pending)
            every = []
            for batcher, group in groups.items():
                found = batcher.submit_all([queued for _, queued in group])
                for (steps, _), result in zip(group, found, strict=True):
                    every.append((steps, self._advance(steps, result)))

    def _hand_over(self, steps: Steps[None], pending: Pending) -> None:
        self._elsewhere(lambda: finish(steps, pending))

    def _advance(self, steps: Steps[None], result: Any = None) -> Pending | None:
        """To what it waits for next; None when it has ended."""
        try:
            if isinstance(result, Exception):
                return steps.throw(result)
            return steps.send(result)
        except StopIteration:
            return None
        except BaseException:
            log.exception("a request failed")
            return None
