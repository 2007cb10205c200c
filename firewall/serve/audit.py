"""The audit log: one JSON line for every row that was not simply accepted.

Lines are written by a thread of their own from a bounded queue: a full disk, or a pipe that nobody
reads, must not hold up answers. What does not fit is dropped and counted.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from firewall.screening.verdict import Decision, Verdict

#: Lines that wait at most.
_BACKLOG = 10_000


class Audit:
    """Writes to a stream, a line at a time, in order."""

    def __init__(self, stream: TextIO, dropped: Callable[[], None] = lambda: None) -> None:
        """Start the writer.

        Args:
            stream: where lines go.
            dropped: told of each line that could not be written.

        """
        self._stream = stream
        self._dropped = dropped
        self._queue: queue.Queue[str | None] = queue.Queue(_BACKLOG)
        self._thread = threading.Thread(target=self._write, name="audit", daemon=True)
        self._thread.start()

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
        """Record a row, unless it was accepted without a fault. Never the input itself."""
        if decision.verdict is Verdict.ACCEPT and not decision.fault:
            return
        self.event(
            "verdict",
            request_id=request_id,
            client=client,
            model=model,
            version=version,
            policy=policy,
            # Of what was not asked of this row.
            exclusions=list(exclusions),
            row=row,
            verdict=decision.verdict.value,
            reasons=list(decision.reasons),
            p_value=decision.p_value,
            statistics={name: _plain(value) for name, value in decision.statistics.items()},
            escalated=decision.escalated,
        )

    def event(self, event: str, **fields: Any) -> None:
        """Record anything else that an operator looks for later."""
        body = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
        try:
            self._queue.put_nowait(json.dumps(body | fields) + "\n")
        except queue.Full:
            self._dropped()

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, for at most some seconds."""
        try:
            self._queue.put(None, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(timeout)

    def _write(self) -> None:
        while (line := self._queue.get()) is not None:
            try:
                self._stream.write(line)
                if self._queue.empty():
                    self._stream.flush()
            except (OSError, ValueError):
                self._dropped()


def _plain(value: float) -> float:
    return float(f"{value:.6g}")
