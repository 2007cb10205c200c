"""A circuit breaker: when a server does not answer, ask it seldom instead of waiting each time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from firewall.errors import NotReady

log = logging.getLogger(__name__)


class Breaker:
    """Open after several failures in a row; then one call at a time probes the server. Thread-safe.

    A call is `admit`ted first, and ends with one of `succeeded`, `failed` and `released`.
    """

    def __init__(self, name: str, failures: int, pause: float, clock: Callable[[], float]) -> None:
        """Start closed.

        Args:
            name: of the server, for the log.
            failures: in a row, after which the breaker opens.
            pause: seconds until a call probes the server.
            clock: gives seconds.

        """
        self._name, self._limit, self._pause, self._clock = name, failures, pause, clock
        self._lock = threading.Lock()
        self._failures = 0
        self._open_until = 0.0
        self._probing = False

    def admit(self) -> bool:
        """Let a call through; returns whether it is the one that probes.

        Raises:
            NotReady: the breaker is open.

        """
        with self._lock:
            if self._failures < self._limit:
                return False
            if self._probing or self._clock() < self._open_until:
                raise NotReady("the classifier behind this firewall does not answer")
            self._probing = True
            return True

    def succeeded(self) -> None:
        """Close: the server has answered with a result."""
        with self._lock:
            if self._failures >= self._limit:
                log.warning("upstream %s answers again", self._name)
            self._failures, self._probing = 0, False

    def answered(self, probes: bool) -> None:
        """Close: the server has answered, if only with an error."""
        with self._lock:
            self._failures = 0
            self._probing = self._probing and not probes

    def failed(self, probes: bool) -> None:
        """Count a call that says that the server is gone."""
        with self._lock:
            self._failures += 1
            if self._failures >= self._limit:
                self._open_until = self._clock() + self._pause
                if self._failures == self._limit:
                    log.warning("upstream %s does not answer", self._name)
            self._probing = self._probing and not probes

    def released(self, probes: bool) -> None:
        """End a call that says nothing about the server."""
        with self._lock:
            self._probing = self._probing and not probes
