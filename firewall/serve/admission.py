"""How much of the server one client may have.

Refusing costs microseconds, computing milliseconds: whoever asks for too much is told so at once,
and the threads are free for the others.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from firewall.errors import Overloaded

#: Clients that are remembered; who has not asked for longest is forgotten, and starts anew.
_CLIENTS = 10_000
#: Seconds after its last request in which a client still counts as one that wants its share.
_RECENT = 1.0


@dataclass
class _Client:
    tokens: float
    filled: float
    running: int = 0
    seen: float = 0.0


class Held:
    """A place of a client, while it lasts."""

    __slots__ = ("_admission", "_client", "_place")

    def __init__(self, admission: Admission, client: str) -> None:
        self._admission, self._client = admission, client

    def __enter__(self) -> None:
        self._place = self._admission.take(self._client)

    def __exit__(self, *_: object) -> None:
        self._admission.give(self._place)


class Admission:
    """A rate for each client, and no more than half of the threads for one while others ask."""

    def __init__(
        self,
        threads: int,
        *,
        rate: float = 0.0,
        burst: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Everyone starts with a full bucket.

        Args:
            threads: that answer requests.
            rate: requests a second of one client; 0 is without limit.
            burst: requests that may come at once; twice the rate, and at least one, when 0.
            clock: seconds.

        """
        self._most = max(1, threads // 2)
        self._rate, self._burst = rate, max(1.0, burst or 2 * rate)
        self._clock = clock
        self._lock = threading.Lock()
        self._clients: OrderedDict[str, _Client] = OrderedDict()

    def enter(self, client: str) -> Held:
        """A context that holds a place for a request.

        Raises:
            Overloaded: on entering it, when the client asks for too much; says when to come back.

        """
        return Held(self, client)

    def take(self, client: str) -> _Client:
        """A place for a request, to be given back."""
        with self._lock:
            one = self._admit(client)
            one.running += 1
        return one

    def give(self, one: _Client) -> None:
        """Give a place back."""
        with self._lock:
            one.running -= 1

    def _admit(self, client: str) -> _Client:
        now = self._clock()
        one = self._clients.get(client)
        if one is None:
            one = self._clients[client] = _Client(self._burst, now)
            self._forget()
        self._clients.move_to_end(client)
        one.seen = now
        if self._rate:
            one.tokens = min(self._burst, one.tokens + (now - one.filled) * self._rate)
            one.filled = now
            if one.tokens < 1:
                raise Overloaded(
                    f"more than {self._rate:g} requests a second",
                    retry_after=(1 - one.tokens) / self._rate,
                )
        if one.running >= self._most and self._others(client, now):
            raise Overloaded(
                f"{one.running} requests of this client are being answered, and others wait",
                retry_after=0.1,
            )
        if self._rate:
            one.tokens -= 1
        return one

    def _others(self, client: str, now: float) -> bool:
        """Whether anyone else has asked lately. The latest are last."""
        for name in reversed(self._clients):
            if name != client:
                return now - self._clients[name].seen < _RECENT
        return False

    def _forget(self) -> None:
        while len(self._clients) > _CLIENTS:
            name, oldest = next(iter(self._clients.items()))
            if oldest.running:
                self._clients.move_to_end(name)
                return
            del self._clients[name]
