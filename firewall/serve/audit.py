"""The audit log: one JSON line for every row that was not simply accepted, and for every change.

Lines go through a bounded queue to a thread of their own (`logging.handlers.QueueListener`): a full
disk, or a pipe that nobody reads, must not hold up answers. Lines that do not fit are dropped and
counted.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from logging.handlers import QueueListener
from typing import Any, TextIO

from firewall.screening.verdict import Decision

#: Lines that may wait.
MAX_QUEUED_LINES = 10_000


class Audit:
    """Writes events to a stream, a line at a time and in order."""

    def __init__(self, stream: TextIO, on_dropped: Callable[[], None] = lambda: None) -> None:
        """Start the writer.

        Args:
            stream: where lines go; each is flushed.
            on_dropped: called for each line that could not be written.

        """
        self._on_dropped = on_dropped
        self._queue: queue.Queue[Any] = queue.Queue(MAX_QUEUED_LINES)
        handler = logging.StreamHandler(stream)
        # What logging does by default is to print a traceback.
        handler.handleError = lambda record: on_dropped()  # type: ignore[method-assign]
        self._listener = QueueListener(self._queue, handler)
        self._listener.start()

    def decided(
        self,
        *,
        request_id: str,
        client: str,
        model: str,
        version: str,
        policy: str,
        exclusions: tuple[str, ...],
        row: int,
        decision: Decision,
    ) -> None:
        """Record a row. The input itself is never written."""
        self.event(
            "verdict",
            request_id=request_id,
            client=client,
            model=model,
            version=version,
            policy=policy,
            # Detectors that were not asked about this row.
            exclusions=list(exclusions),
            row=row,
            verdict=decision.verdict.value,
            reasons=list(decision.reasons),
            p_value=decision.p_value,
            statistics={name: _rounded(value) for name, value in decision.statistics.items()},
            escalated=decision.escalated,
        )

    def event(self, event: str, **fields: Any) -> None:
        """Record anything else that an operator looks for later."""
        body = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
        line = json.dumps(body | fields, allow_nan=False)
        try:
            self._queue.put_nowait(logging.makeLogRecord({"msg": line}))
        except queue.Full:
            self._on_dropped()

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, for at most some seconds."""
        # Stopping waits for the stream, which may be a pipe that nobody reads.
        stopping = threading.Thread(target=self._stop, daemon=True)
        stopping.start()
        stopping.join(timeout)

    def _stop(self) -> None:
        while True:
            try:
                self._listener.stop()
                return
            except queue.Full:
                threading.Event().wait(0.05)


def _rounded(value: float) -> float | None:
    """Six significant digits; None for what JSON cannot hold."""
    rounded = float(f"{value:.6g}")
    return rounded if abs(rounded) < float("inf") else None
