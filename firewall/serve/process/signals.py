"""Signals of `firewall serve`, taken from its first moment on.

As process 1 of a container a signal that nothing handles is lost, so the handlers are there before
anything is imported that takes time. While the server starts, SIGTERM and SIGINT end it at once
with status 0: nothing has been taken yet that could be lost. SIGHUP is remembered.
"""

from __future__ import annotations

import signal
from types import FrameType


class Signals:
    """Signals that have come, in order."""

    def __init__(self) -> None:
        """Handle SIGTERM, SIGINT and SIGHUP from now on."""
        # A list and not an Event: setting an Event twice from a handler can lock its own thread
        # out.
        self.pending: list[int] = []
        self._starting = True
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._received)

    def started(self) -> None:
        """Leave it to the server from now on to end in good order."""
        self._starting = False

    @property
    def ended_start(self) -> bool:
        """Whether the server was told to stop while it started.

        The exit that this raises may arrive as another exception: Python wraps what is raised while
        it makes a class, and imports may catch what they do not know.
        """
        return self._starting and any(number != signal.SIGHUP for number in self.pending)

    def _received(self, number: int, _: FrameType | None) -> None:
        self.pending.append(number)
        if self._starting and number != signal.SIGHUP:
            raise SystemExit(0)


def listen() -> Signals:
    """Handle signals, or return what handles them already."""
    owner = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return owner if isinstance(owner, Signals) else Signals()
