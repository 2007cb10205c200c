"""Keeps rows without holding up an answer: a bounded queue and a thread of its own."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from firewall.quarantine.entry import Entry
from firewall.quarantine.store import Limits, Store
from firewall.quarantine.wall_clock import WallClock

log = logging.getLogger(__name__)

#: Rows that wait at most, and rows of one transaction.
MAX_QUEUED_ROWS, _BATCH = 1024, 64
#: Seconds between sweeps, between looks at every image for strays, and between tries while the
#: store is down.
_SWEEP, _STRAYS, _AGAIN = 60.0, 3600.0, 1.0


class Writer:
    """Writes to a store. What does not fit the queue is dropped and counted; what was taken from it
    is tried until it is there or the server stops.
    """

    def __init__(
        self,
        store: Store,
        limits: Limits,
        *,
        stored: Callable[[int], None] = lambda rows: None,
        dropped: Callable[[int], None] = lambda rows: None,
        waiting: Callable[[int], None] = lambda rows: None,
    ) -> None:
        """Start the thread.

        Args:
            store: where to.
            limits: how much is kept.
            stored: told of rows that are there.
            dropped: told of rows that will never be.
            waiting: told how many rows wait, when one is added and when some are stored.

        """
        #: Where rows go; whoever reads it may do so from another thread.
        self.store = store
        self._limits = limits
        self._stored, self._dropped, self._waiting = stored, dropped, waiting
        self._queue: queue.Queue[Entry | None] = queue.Queue(MAX_QUEUED_ROWS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="quarantine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Rows that are not there yet."""
        return self._queue.qsize()

    def put(self, entry: Entry) -> None:
        """Keep a row, if there is room."""
        try:
            self._queue.put_nowait(entry)
        except queue.Full:
            self._dropped(1)
        self._waiting(self._queue.qsize())

    def close(self, timeout: float = 5.0) -> None:
        """Write what waits, for at most some seconds; the rest is counted as dropped."""
        end = time.monotonic() + timeout
        try:
            self._queue.put(None, timeout=timeout)
        except queue.Full:
            self._stop.set()
        self._thread.join(max(0.0, end - time.monotonic()))
        self._stop.set()
        self._thread.join(_AGAIN + 1.0)
        left = self._drain()
        if left:
            self._dropped(left)
        self.store.close()

    def _run(self) -> None:
        swept = looked = time.monotonic()
        clock = WallClock()
        ended = False
        while not ended and not self._stop.is_set():
            batch, ended = self._take()
            if batch and not self._keep(batch):
                self._dropped(len(batch))
                return
            now = time.monotonic()
            if now - swept > _SWEEP:
                self._tidy(lambda: self.store.sweep(self._limits, by_age=clock.is_trusted()))
                swept = now
            if now - looked > _STRAYS:
                self._tidy(self.store.strays)
                looked = now

    def _take(self) -> tuple[list[Entry], bool]:
        """What waits, up to a transaction's worth; and whether that was the end."""
        batch: list[Entry] = []
        try:
            first = self._queue.get(timeout=1.0)
        except queue.Empty:
            return batch, False
        while first is not None:
            batch.append(first)
            if len(batch) == _BATCH:
                return batch, False
            try:
                first = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _keep(self, batch: list[Entry]) -> bool:
        """Until they are there; False when the server stopped first."""
        said = False
        while True:
            try:
                self.store.add(batch)
            except Exception as error:  # a database's and a file system's own
                if not said:
                    log.warning("quarantine: %d rows wait: %s", len(batch), error)
                    said = True
                if self._stop.wait(_AGAIN):
                    return False
                continue
            self._stored(len(batch))
            self._waiting(self._queue.qsize())
            return True

    def _tidy(self, work: Callable[[], int]) -> None:
        try:
            work()
        except Exception as error:  # as above; the next sweep tries again
            log.warning("quarantine: cannot be swept: %s", error)

    def _drain(self) -> int:
        left = 0
        while True:
            try:
                left += self._queue.get_nowait() is not None
            except queue.Empty:
                return left
