"""Micro-batching that never waits.

There is no timer and no thread of its own. The first caller to find the guard idle runs it, on
every row that is queued by then; whoever comes meanwhile queues, and when the run ends the first of
them leads the next one. So an idle server answers at once, and a busy one batches by itself. A
guard that waits for another server can run several batches at a time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from firewall.errors import Cancelled, DeadlineExceeded, Overloaded
from firewall.serve.call import Call

#: A batch may grow to so many rows while it takes no longer than so many seconds, as far as those
#: before it tell.
_MOST_ROWS, _MOST_SECONDS = 64, 0.01
#: Seconds that a row may take for its batch to be light.
_LIGHT = 0.0005

Work = TypeVar("Work")
Result = TypeVar("Result")


class _Latch:
    """What one thread waits on: a bare lock, which is what `threading.Event` is made of."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        """Let the waiting thread go on, now or when it comes. May be called again."""
        # Of two that come at once the second finds nothing to release.
        with contextlib.suppress(RuntimeError):
            self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Until it is set, which it then is no more; False when that took too long."""
        return self._lock.acquire(timeout=-1 if timeout is None else timeout)


@dataclass(eq=False, slots=True)
class Queued(Generic[Work, Result]):
    """A piece of work that a call waits for, or will."""

    batcher: Batcher[Work, Result]
    work: Work
    rows: int
    call: Call

    def wait(self) -> Result:
        """As `Batcher.submit`."""
        return self.batcher.submit(self.work, self.rows, self.call)


@dataclass(eq=False, slots=True)
class _Item(Generic[Work, Result]):
    work: Work
    rows: int
    deadline: float | None
    queued: float
    wake: _Latch = field(default_factory=_Latch)
    leads: bool = False
    done: bool = False
    result: Result | None = None
    error: Exception | None = None


class Batcher(Generic[Work, Result]):
    """Runs queued work in batches, one batch at a time."""

    def __init__(
        self,
        run: Callable[[list[Work]], Sequence[Result | Exception]],
        *,
        batch_rows: int,
        queue_rows: int,
        lanes: int = 1,
        observe: Callable[[int, float], None] = lambda rows, waited: None,
    ) -> None:
        """Nothing runs until `submit`.

        Args:
            run: one result for each piece of work, or an exception in its place; one that is
                raised is everyone's in the batch.
            batch_rows: rows a batch holds at most, unless rows are done in no time; a larger piece
                of work runs alone.
            queue_rows: rows that may wait; more is `Overloaded`.
            lanes: batches that run at a time.
            observe: told rows of a batch and seconds that its first piece waited.

        """
        self._run = run
        self._batch_rows = batch_rows
        self._queue_rows = queue_rows
        self._observe = observe
        self._lock = threading.Lock()
        self._queue: deque[_Item[Work, Result]] = deque()
        self._queued = 0
        self._lanes = lanes
        self._running = 0
        self._row_seconds = 0.0

    @property
    def backlog_seconds(self) -> float:
        """How long the rows that wait now will take, as far as those before them tell."""
        return self._queued * self._row_seconds / self._lanes

    @property
    def queued_rows(self) -> int:
        """Rows that wait now."""
        return self._queued

    @property
    def light(self) -> bool:
        """Whether a batch is computed in no time, as far as those before it tell."""
        return self._lanes == 1 and 0 < self._row_seconds < _LIGHT

    @property
    def free(self) -> bool:
        """Whether nobody has to be waited for."""
        return self._running < self._lanes and not self._queue

    @property
    def most_rows(self) -> int:
        """Rows of a batch, at most, as things are."""
        with self._lock:
            return self._most_rows()

    def submit_all(self, every: Sequence[Queued[Work, Result]]) -> list[Result | Exception]:
        """Run the work of many calls that one thread waits for; a result or an error for each.

        Errors are those of `submit`, but who goes away meanwhile is not noticed.
        """
        now = time.monotonic()
        items: list[_Item[Work, Result]] = [
            _Item(one.work, one.rows, one.call.deadline, now) for one in every
        ]
        with self._lock:
            for item in items:
                if (full := self._full(item.rows)) is not None:
                    item.done, item.error = True, full
                    continue
                self._queue.append(item)
                self._queued += item.rows
            if self._queue and self._running < self._lanes:
                self._running += 1
                next(item for item in items if not item.done).leads = True
        found: list[Result | Exception] = []
        for item in items:
            while item.leads or not item.done:
                if item.leads:
                    self._lead(item)
                else:
                    item.wake.wait()
            if item.error is not None:
                found.append(item.error)
            else:
                assert item.result is not None
                found.append(item.result)
        return found

    def _full(self, rows: int) -> Overloaded | None:
        """Why so many rows may not wait as well. Locked."""
        if not self._queue or self._queued + rows <= self._queue_rows:
            return None
        return Overloaded(
            f"the queue is full: {self._queued} rows wait, at most {self._queue_rows} may",
            retry_after=max(0.05, self._queued * self._row_seconds),
        )

    def submit(self, work: Work, rows: int, call: Call) -> Result:
        """Run the work with whatever else is queued; returns its result.

        Raises:
            Overloaded: the queue is full.
            DeadlineExceeded: the call's deadline passed before its batch began or ended.
            Cancelled: the caller went away.

        """
        now = time.monotonic()
        if call.deadline is not None and call.deadline <= now:
            raise DeadlineExceeded("the deadline passed before the request was computed")
        with self._lock:
            alone = not self._queue and self._running < self._lanes
            if alone:
                self._running += 1
        if alone:
            return self._work_alone(work, rows)
        item: _Item[Work, Result] = _Item(work, rows, call.deadline, now)
        with self._lock:
            if (full := self._full(rows)) is not None:
                raise full
            self._queue.append(item)
            self._queued += rows
            if self._running < self._lanes:
                self._running += 1
                item.leads = True
        if not item.leads:
            # Registered only by those who wait: a running batch is not interrupted.
            if not call.on_cancel(lambda: self._abandon(item, Cancelled("the caller went away"))):
                self._abandon(item, Cancelled("the caller went away"))
            timeout = None if call.deadline is None else max(0.0, call.deadline - now)
            if not item.wake.wait(timeout):
                self._abandon(
                    item,
                    DeadlineExceeded("the deadline passed before the request was computed"),
                )
        if item.leads:
            # Also when another lane has run it by now: the lane is to be handed on.
            self._lead(item)
        while not item.done:
            # Another lane runs it. Whoever sets `done` sets `wake` after it.
            item.wake.wait()
        if item.error is not None:
            raise item.error
        assert item.result is not None
        return item.result

    def _work_alone(self, work: Work, rows: int) -> Result:
        """Run what found an idle guard, which need not be queued."""
        start, done = time.monotonic(), 0
        try:
            [result] = self._results([work], rows, 0.0)
            if isinstance(result, Exception):
                raise result
            done = rows
            return result
        finally:
            with self._lock:
                self._took(time.monotonic() - start, done)
                self._hand_on()

    def _results(self, work: list[Work], rows: int, waited: float) -> Sequence[Result | Exception]:
        """One for each piece of work, or an `Exception`: gRPC answers for no other, and the call
        would stay open.
        """
        try:
            self._observe(rows, waited)
            results = self._run(work)
        except Exception:
            raise
        except BaseException as raised:
            raise RuntimeError(f"a stage ended with {type(raised).__name__}") from raised
        if len(results) != len(work):
            raise RuntimeError(f"{len(results)} results for a batch of {len(work)}")
        return results

    def _took(self, seconds: float, rows: int) -> None:
        """Follow how long a row takes: for how many go together, and how long Overloaded asks
        clients to stay away. What failed took no row's time. Locked.
        """
        if not rows:
            return
        row_seconds = seconds / rows
        if self._row_seconds:
            row_seconds = self._row_seconds + 0.2 * (row_seconds - self._row_seconds)
        self._row_seconds = row_seconds

    def _hand_on(self) -> None:
        """Give a lane to the oldest that waits, unless that leads in another one. Locked."""
        heir = next((one for one in self._queue if not one.leads), None)
        if heir is not None:
            heir.leads = True
            heir.wake.set()
        else:
            self._running -= 1

    def _abandon(self, item: _Item[Work, Result], error: Exception) -> None:
        """Drop an item that nobody waits for; its row may be in a running batch all the same."""
        with self._lock:
            if item.done or item.leads:
                return
            item.done, item.error = True, error
            if item in self._queue:
                self._queue.remove(item)
                self._queued -= item.rows
        item.wake.set()

    def _lead(self, own: _Item[Work, Result]) -> None:
        try:
            while not own.done:
                batch = self._take()
                if not batch:
                    # Taken by another lane, or late.
                    break
                self._work(batch)
        finally:
            with self._lock:
                own.leads = False
                self._hand_on()

    def _take(self) -> list[_Item[Work, Result]]:
        """The next batch, less what is late by now."""
        now = time.monotonic()
        batch: list[_Item[Work, Result]] = []
        rows = 0
        with self._lock:
            most = self._most_rows()
            while self._queue:
                item = self._queue[0]
                late = item.deadline is not None and item.deadline <= now
                if not late and batch and rows + item.rows > most:
                    break
                self._queue.popleft()
                self._queued -= item.rows
                if late:
                    item.done = True
                    item.error = DeadlineExceeded(
                        "the deadline passed before the request was computed"
                    )
                    item.wake.set()
                    continue
                batch.append(item)
                rows += item.rows
        return batch

    def _most_rows(self) -> int:
        """Rows of a batch: more than a few where they are done in no time. Locked."""
        if not self._row_seconds:
            return self._batch_rows
        return max(self._batch_rows, min(_MOST_ROWS, int(_MOST_SECONDS / self._row_seconds)))

    def _work(self, batch: list[_Item[Work, Result]]) -> None:
        start = time.monotonic()
        rows = sum(item.rows for item in batch)
        error: Exception | None = None
        results: Sequence[Result | Exception] = ()
        try:
            work = [item.work for item in batch]
            results = self._results(work, rows, start - batch[0].queued)
        except Exception as raised:
            error = raised
        seconds = time.monotonic() - start
        done = sum(
            item.rows
            for item, result in zip(batch, results, strict=False)
            if not isinstance(result, Exception)
        )
        with self._lock:
            self._took(seconds, done)
            for number, item in enumerate(batch):
                if item.done:
                    continue
                item.done = True
                result = error or results[number]
                if isinstance(result, Exception):
                    item.error = result
                else:
                    item.result = result
                item.wake.set()
