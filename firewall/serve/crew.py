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
from collections.abc import Callable, Iterator
from typing import Any

from firewall.errors import NotReady
from firewall.serve.batcher import Batcher, Queued
from firewall.serve.scheduling import interrupt_nobody
from firewall.serve.staged import Pending, Steps, finish

log = logging.getLogger(__name__)

_Waiting = tuple[Steps[None], Pending | None]
_Asking = tuple[Steps[None], Queued[Any, Any]]

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
        self._inbox: deque[tuple[Steps[None], Any]] = deque()
        self._wake = threading.Condition(threading.Lock())
        self._asleep = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def give(self, steps: Steps[None], result: Any = None) -> None:
        """A request, which answers for itself, and what it waits for. Never waits.

        Raises:
            RuntimeError: it is closed, or the system has no thread to give.

        """
        if self._thread is None or self._closed:
            self._begin()
        self._inbox.append((steps, result))
        if self._asleep:
            with self._wake:
                self._wake.notify()

    def close(self, timeout: float) -> None:
        """Answer what is there, and end, within some seconds."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(timeout)

    def _begin(self) -> None:
        with self._wake:
            if self._closed:
                raise RuntimeError("the crew has ended")
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="crew", daemon=True)
                thread.start()
                self._thread = thread

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
        every = [(steps, self._advance(steps, result)) for steps, result in begun]
        while every:
            every = self._computed(self._groups(every))

    def _groups(self, every: list[_Waiting]) -> dict[Batcher[Any, Any], list[_Asking]]:
        """What may be computed here, by guard; the rest goes elsewhere."""
        groups: dict[Batcher[Any, Any], list[_Asking]] = {}
        for steps, pending in every:
            if pending is None:
                continue
            if isinstance(pending, Queued) and pending.batcher.light:
                groups.setdefault(pending.batcher, []).append((steps, pending))
            else:
                self._hand_over(steps, pending)
        return groups

    def _computed(self, groups: dict[Batcher[Any, Any], list[_Asking]]) -> list[_Waiting]:
        """All of them, a batch at a time, each answered before the next batch."""
        further: list[_Waiting] = []
        for batcher, group in groups.items():
            for part in _parts(group, batcher.most_rows):
                results = batcher.submit_all([queued for _, queued in part])
                # An error may be that of many: raising it lengthens its traceback each time.
                traces = [getattr(result, "__traceback__", None) for result in results]
                for (steps, _), result, trace in zip(part, results, traces, strict=True):
                    if isinstance(result, Exception):
                        result = result.with_traceback(trace)
                    further.append((steps, self._advance(steps, result)))
        return further

    def _hand_over(self, steps: Steps[None], pending: Pending) -> None:
        try:
            self._elsewhere(lambda: finish(steps, pending))
        except RuntimeError as error:
            # No thread is to be had: the request is told so.
            self._advance(steps, NotReady(f"no thread is to be had: {error}"))

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


def _parts(group: list[_Asking], most: int) -> Iterator[list[_Asking]]:
    """In order, of so many rows at most, or of one request."""
    part: list[_Asking] = []
    rows = 0
    for asking in group:
        if part and rows + asking[1].rows > most:
            yield part
            part, rows = [], 0
        part.append(asking)
        rows += asking[1].rows
    if part:
        yield part
