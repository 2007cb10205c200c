"""Micro-batching without added delay.

There is no timer. The first caller to find the guard idle runs it on every row that is queued by
then; callers that come meanwhile queue, and when the run ends the oldest of them leads the next
one. An idle server therefore answers at once, and a busy one batches by itself. A guard that waits
for another server can run several batches at a time (`lanes`).

A thread that may wait calls `submit`. An event loop calls `enqueue`, which returns at once: where
no waiting thread can lead, a thread of the batcher's own does.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from firewall.errors import Cancelled, DeadlineExceeded, Overloaded
from firewall.serve.context import RequestContext

#: A batch may grow to this many rows while it is expected to take no longer than this.
_MAX_ROWS, _MAX_SECONDS = 64, 0.01

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
        # Of two threads that set it at once, the second finds nothing to release.
        with contextlib.suppress(RuntimeError):
            self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, and reset it; False when that took too long."""
        return self._lock.acquire(timeout=-1 if timeout is None else timeout)


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
    on_done: Callable[[Result | Exception], None] | None = None

    def settle(self, result: Result | Exception) -> None:
        """Give the item its outcome. Locked; `tell` follows without the lock."""
        self.done = True
        if isinstance(result, Exception):
            self.error = result
        else:
            self.result = result

    def tell(self) -> None:
        """Wake whoever waits for the outcome."""
        if self.on_done is None:
            self.wake.set()
            return
        outcome = self.error or self.result
        assert outcome is not None
        self.on_done(outcome)


class Batcher(Generic[Work, Result]):
    """Runs queued work in batches."""

    def __init__(
        self,
        run: Callable[[list[Work]], Sequence[Result | Exception]],
        *,
        batch_rows: int,
        queue_rows: int,
        lanes: int = 1,
        on_batch: Callable[[int, float, int], None] = lambda rows, waited, queued: None,
    ) -> None:
        """Run nothing until `submit`.

        Args:
            run: gives one result for each piece of work, or an exception in its place; an exception
                that it raises belongs to every piece of the batch.
            batch_rows: rows that a batch holds at most, unless rows are computed in no time; a
                larger piece of work runs alone.
            queue_rows: rows that may wait; beyond them `submit` raises `Overloaded`.
            lanes: batches that run at a time.
            on_batch: called with the rows of a batch, the seconds that its first piece waited, and
                the rows that are left in the queue.

        """
        self._run = run
        self._batch_rows = batch_rows
        self._queue_rows = queue_rows
        self._on_batch = on_batch
        self._lock = threading.Lock()
        self._queue: deque[_Item[Work, Result]] = deque()
        self._queued = 0
        self._lanes = lanes
        self._running = 0
        self._row_seconds = 0.0
        #: Turns to lead for the batcher's own thread, which is started when it is first needed.
        self._turns: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def backlog_seconds(self) -> float:
        """Seconds that the waiting rows will take, judged by those before them."""
        return self._queued * self._row_seconds / self._lanes

    @property
    def queued_rows(self) -> int:
        """Rows that wait now."""
        return self._queued

    def submit(self, work: Work, rows: int, context: RequestContext) -> Result:
        """Run the work with whatever else is queued, and return its result.

        Raises:
            Overloaded: the queue is full.
            DeadlineExceeded: the deadline passed before the batch began or ended.
            Cancelled: the caller went away.

        """
        now = time.monotonic()
        if context.deadline is not None and context.deadline <= now:
            raise _late()
        with self._lock:
            alone = not self._queue and self._running < self._lanes
            if alone:
                self._running += 1
        if alone:
            return self._run_alone(work, rows)
        item: _Item[Work, Result] = _Item(work, rows, context.deadline, now)
        self._enqueue(item)
        if not item.leads:
            # Registered only by callers that wait: a running batch is not interrupted.
            if not context.on_cancel(lambda: self._abandon(item, _gone())):
                self._abandon(item, _gone())
            timeout = None if context.deadline is None else max(0.0, context.deadline - now)
            if not item.wake.wait(timeout):
                self._abandon(item, _late())
        if item.leads:
            # Also when another lane has run it by now: the lane has to be handed on.
            self._lead(item)
        while not item.done:
            # Another lane runs it. Whoever sets `done` sets `wake` after it.
            item.wake.wait()
        if item.error is not None:
            raise item.error
        assert item.result is not None
        return item.result

    def enqueue(
        self,
        work: Work,
        rows: int,
        context: RequestContext,
        on_done: Callable[[Result | Exception], None],
    ) -> None:
        """Run the work with whatever else is queued, and call back from another thread.

        Raises:
            Overloaded: the queue is full.
            DeadlineExceeded: the deadline has passed.

        """
        now = time.monotonic()
        if context.deadline is not None and context.deadline <= now:
            raise _late()
        item: _Item[Work, Result] = _Item(work, rows, context.deadline, now, on_done=on_done)
        self._enqueue(item)
        context.on_cancel(lambda: self._abandon(item, _gone()))

    def _enqueue(self, item: _Item[Work, Result]) -> None:
        with self._lock:
            if self._queue and self._queued + item.rows > self._queue_rows:
                raise Overloaded(
                    f"the queue is full: {self._queued} rows wait, at most {self._queue_rows} may",
                    retry_after=max(0.05, self._queued * self._row_seconds),
                )
            self._queue.append(item)
            self._queued += item.rows
            if self._running < self._lanes:
                self._running += 1
                self._let_lead(item)

    def _let_lead(self, item: _Item[Work, Result]) -> None:
        """Give a lane to an item's thread, or to the batcher's own. Locked."""
        if item.on_done is None:
            item.leads = True
            item.wake.set()
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve_turns, name="batcher", daemon=True)
            self._thread.start()
        self._turns.put(None)

    def _serve_turns(self) -> None:
        """Lead for callers that do not wait: one batch a turn."""
        while True:
            self._turns.get()
            try:
                batch, queued = self._take()
                if batch:
                    self._run_batch(batch, queued)
            finally:
                with self._lock:
                    self._hand_on()

    def _run_alone(self, work: Work, rows: int) -> Result:
        """Run work that found an idle guard and need not be queued."""
        start, done = time.monotonic(), 0
        try:
            [result] = self._results([work], rows, 0.0, 0)
            if isinstance(result, Exception):
                raise result
            done = rows
            return result
        finally:
            with self._lock:
                self._measure(time.monotonic() - start, done)
                self._hand_on()

    def _results(
        self, work: list[Work], rows: int, waited: float, queued: int
    ) -> Sequence[Result | Exception]:
        """Run a batch. Raises `Exception` only, since gRPC answers for no other kind and would
        leave the call open.
        """
        try:
            self._on_batch(rows, waited, queued)
            results = self._run(work)
        except Exception:
            raise
        except BaseException as raised:
            raise RuntimeError(f"a stage ended with {type(raised).__name__}") from raised
        if len(results) != len(work):
            raise RuntimeError(f"{len(results)} results for a batch of {len(work)}")
        return results

    def _measure(self, seconds: float, rows: int) -> None:
        """Follow how long a row takes. Failed rows (`rows` = 0) measure nothing. Locked."""
        if not rows:
            return
        row_seconds = seconds / rows
        if self._row_seconds:
            row_seconds = self._row_seconds + 0.2 * (row_seconds - self._row_seconds)
        self._row_seconds = row_seconds

    def _hand_on(self) -> None:
        """Give the lane to the oldest item that does not lead in another lane. Locked."""
        heir = next((item for item in self._queue if not item.leads), None)
        if heir is not None:
            self._let_lead(heir)
        else:
            self._running -= 1

    def _abandon(self, item: _Item[Work, Result], error: Exception) -> None:
        """Drop an item that nobody waits for; its rows may be in a running batch all the same."""
        with self._lock:
            if item.done or item.leads:
                return
            item.settle(error)
            if item in self._queue:
                self._queue.remove(item)
                self._queued -= item.rows
        item.tell()

    def _lead(self, own: _Item[Work, Result]) -> None:
        try:
            while not own.done:
                batch, queued = self._take()
                if not batch:
                    # Taken by another lane, or late.
                    break
                self._run_batch(batch, queued)
        finally:
            with self._lock:
                own.leads = False
                self._hand_on()

    def _take(self) -> tuple[list[_Item[Work, Result]], int]:
        """Take the next batch, without items that are late by now; and count the rows left."""
        now = time.monotonic()
        batch: list[_Item[Work, Result]] = []
        overdue: list[_Item[Work, Result]] = []
        rows = 0
        with self._lock:
            max_rows = self._max_rows()
            while self._queue:
                item = self._queue[0]
                late = item.deadline is not None and item.deadline <= now
                if not late and batch and rows + item.rows > max_rows:
                    break
                self._queue.popleft()
                self._queued -= item.rows
                if late:
                    item.settle(_late())
                    overdue.append(item)
                    continue
                batch.append(item)
                rows += item.rows
            queued = self._queued
        for item in overdue:
            item.tell()
        return batch, queued

    def _max_rows(self) -> int:
        """Rows of a batch: more than `batch_rows` where rows are computed in no time. Locked."""
        if not self._row_seconds:
            return self._batch_rows
        return max(self._batch_rows, min(_MAX_ROWS, int(_MAX_SECONDS / self._row_seconds)))

    def _run_batch(self, batch: list[_Item[Work, Result]], queued: int) -> None:
        start = time.monotonic()
        rows = sum(item.rows for item in batch)
        error: Exception | None = None
        results: Sequence[Result | Exception] = ()
        try:
            work = [item.work for item in batch]
            results = self._results(work, rows, start - batch[0].queued, queued)
        except Exception as raised:
            error = raised
        seconds = time.monotonic() - start
        done = sum(
            item.rows
            for item, result in zip(batch, results, strict=False)
            if not isinstance(result, Exception)
        )
        settled: list[_Item[Work, Result]] = []
        with self._lock:
            self._measure(seconds, done)
            for number, item in enumerate(batch):
                if not item.done:
                    item.settle(error or results[number])
                    settled.append(item)
        for item in settled:
            item.tell()


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the request was computed")


def _gone() -> Cancelled:
    return Cancelled("the caller went away")
