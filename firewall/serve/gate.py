"""So many calls at a time, and what is known about those that wait.

A call that has room has its message received; the others stay with their clients, and hold nothing
here but their headers.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from firewall.serve.arrival import Arrivals
from firewall.serve.exchange import Arrived, Exchange

log = logging.getLogger(__name__)

#: Seconds for which a call waits for its message once many do: when others wait for its place, and
#: when none does.
HURRY, PATIENCE = 0.5, 30.0


class Room(Protocol):
    """How full a server is."""

    @property
    def waiting(self) -> int:
        """Calls that nothing has been done about yet."""
        ...

    @property
    def busy(self) -> int:
        """Calls that are received or answered."""
        ...


@dataclass(frozen=True)
class Route:
    """What is done about the calls of a method. Nothing of it may wait, or raise.

    Attributes:
        begun: whether the message is to be received; if not, the exchange has been ended.
        arrived: told the message, or why there is none; has the exchange ended, sooner or later.

    """

    begun: Callable[[Exchange], bool]
    arrived: Callable[[Exchange, Arrived], None]


class Gate:
    """Lets calls begin."""

    def __init__(self, most: int, arrivals: Arrivals, draining: Callable[[], bool]) -> None:
        """Nobody is here.

        Args:
            most: calls that are received or answered at a time: each may hold a message.
            arrivals: looks after those whose message does not come.
            draining: whether the server is shutting down.

        """
        self._most, self._arrivals, self._draining = most, arrivals, draining
        self._lock = threading.Lock()
        self._busy = 0
        self._here = threading.local()
        self._waiting: deque[tuple[Exchange, Route]] = deque()

    @property
    def waiting(self) -> int:
        """Calls that nothing has been received of, since as many as may be are being answered."""
        return len(self._waiting)

    @property
    def busy(self) -> int:
        """Calls that are received or answered."""
        return self._busy

    def enter(self, exchange: Exchange, route: Route) -> None:
        """A call that has come."""
        with self._lock:
            room = self._busy < self._most
            if room:
                self._busy += 1
            else:
                self._waiting.append((exchange, route))
        if room:
            self._begin(exchange, route)

    def ended(self) -> None:
        """A call that had begun is over: the next one has its place."""
        with self._lock:
            self._busy -= 1
        if not self._waiting or getattr(self._here, "beginning", False):
            # One that ended as it began: whoever began it goes on with the next.
            return
        self._here.beginning = True
        try:
            while True:
                with self._lock:
                    if not self._waiting or self._busy >= self._most:
                        return
                    exchange, route = self._waiting.popleft()
                    self._busy += 1
                self._begin(exchange, route)
        finally:
            self._here.beginning = False

    def _begin(self, exchange: Exchange, route: Route) -> None:
        if not route.begun(exchange):
            return
        self._arrivals.expect(id(exchange), exchange, self._patience)

        def told(arrived: Arrived) -> None:
            self._arrivals.came(id(exchange))
            route.arrived(exchange, arrived)

        exchange.receive(told)

    def _patience(self) -> float:
        """Seconds that a call may wait for its message."""
        return HURRY if self._waiting or self._draining() else PATIENCE
