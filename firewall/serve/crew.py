"""Many small requests in one thread.

What has come by now is one round: each request is brought to where it needs its guard, the guard
sees them together, and each is answered. Nothing is woken and no lock changes hands between the
requests of a batch. What needs long, or waits for somebody else, goes to a thread of its own.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from firewall.errors import NotReady
from firewall.serve.batcher import Batcher, Queued
from firewall.serve.staged import Pending, Steps, finish

log = logging.getLogger(__name__)

_Waiting = tuple[Steps[None], Pending | None]
_Asking = tuple[Steps[None], Queued[Any, Any]]

#: Requests of a round, at most: the first is to be answered soon.
_ROUND = 64


class Crew:
    """Answers requests given as steps, a round at a time."""

    def __init__(
        self, elsewhere: Callable[[Callable[[], Any]], Any], wake: Callable[[], None]
    ) -> None:
        """Nothing is here.

        Args:
            elsewhere: runs a task in a thread that may wait.
            wake: has the thread that calls `round` do so soon; it is told from any thread.

        """
        self._elsewhere, self._wake = elsewhere, wake
        self._inbox: deque[tuple[Steps[None], Any]] = deque()

    def give(self, steps: Steps[None], result: Any = None) -> None:
        """A request, which answers for itself, and what it waited for. Never waits."""
        self._inbox.append((steps, result))
        self._wake()

    def round(self) -> bool:
        """Answer what is here; True when more has come than a round takes."""
        inbox = self._inbox
        if not inbox:
            return False
        begun = [inbox.popleft() for _ in range(min(len(inbox), _ROUND))]
        every = [(steps, self._advance(steps, result)) for steps, result in begun]
        while every:
            every = self._computed(self._groups(every))
        return bool(inbox)

    def _groups(self, every: list[_Waiting]) -> dict[Batcher[Any, Any], list[_Asking]]:
        """What may be computed here, by guard; the rest goes elsewhere."""
        groups: dict[Batcher[Any, Any], list[_Asking]] = {}
        for steps, pending in every:
            if pending is None:
                continue
            if isinstance(pending, Queued) and pending.batcher.light and pending.batcher.free:
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
