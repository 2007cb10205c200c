"""Every limit on how much of the server a client may use, in one place.

| limit | what happens beyond it |
|---|---|
| requests in progress (`max_requests`) | 429 / RESOURCE_EXHAUSTED with a time to retry |
| as many of them by one client as are free, while others ask | the same, for that client alone |
| half as many, of which no message has come, while others ask | the same, for that client alone |
| three quarters, by a client that has not sent its messages | the same, for that client alone |
| expected wait (`max_wait`) | the same |
| rows a second by client (`client_rate`, `client_burst`) | the same |

A refusal costs microseconds and a computation milliseconds, so a client that asks for too much is
refused at once. Bytes and shapes of one request are limited in `data_plane.Limits`; streams,
headers and connections in `grpc_server` and `rest_server`.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from firewall.errors import Overloaded

#: Clients that are remembered. The one that has been silent for longest is forgotten first.
MAX_CLIENTS = 10_000
#: Seconds after its last request for which a client still counts as one that wants a share.
_RECENT = 1.0
#: Weight of the latest interval between completions in the running mean.
_WEIGHT = 0.05
#: A request takes longer than the mean suggests: its own batch has to end as well, and the slow
#: requests are the ones that have to meet the limit.
_SPREAD = 1.6


@dataclass(slots=True)
class _Client:
    tokens: float
    filled: float
    running: int = 0
    #: Of the running, those whose message has not arrived.
    receiving: int = 0
    seen: float = 0.0


class Admission:
    """One admitted request; `release` gives its place back and may be called twice."""

    __slots__ = ("_client", "_computes", "_controller", "_released")

    def __init__(self, controller: AdmissionController, client: _Client) -> None:
        self._controller, self._client = controller, client
        self._computes = self._released = False

    def received(self) -> None:
        """Note that the message has arrived: from now on it is the server that takes time."""
        if not self._computes:
            self._computes = True
            self._controller.begin_computing(self._client)

    def charge(self, rows: int) -> None:
        """Count the rows of the request; the first has been paid for on admission."""
        self._controller.charge(self._client, rows - 1)

    def release(self) -> None:
        """Give the place back."""
        if not self._released:
            self._released = True
            self._controller.release(self._client, computed=self._computes)


class AdmissionController:
    """Admits requests while there is room, and shares the room fairly between clients."""

    def __init__(
        self,
        max_requests: int,
        *,
        rate: float = 0.0,
        burst: float = 0.0,
        max_wait: float = float("inf"),
        backlog_seconds: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with full rate budgets.

        Args:
            max_requests: requests in progress at a time, over all protocols.
            rate: rows a second of one client; 0 means no limit.
            burst: rows that may come at once; 0 means twice the rate, and at least one.
            max_wait: seconds that a request may be expected to wait.
            backlog_seconds: seconds that the queued rows will take, as the batchers measure it.
            clock: seconds, monotonic.

        """
        self._max_requests = max_requests
        self._rate, self._burst = rate, max(1.0, burst or 2 * rate)
        self._max_wait, self._backlog_seconds = max_wait, backlog_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._clients: OrderedDict[str, _Client] = OrderedDict()
        self._running = 0
        #: Of them, those whose message has arrived.
        self._computing = 0
        #: Clients with requests in progress.
        self._holders = 0
        self._intervals = _CompletionIntervals()
        self._last_arrival = 0.0

    @property
    def running(self) -> int:
        """Requests in progress."""
        return self._running

    @property
    def last_arrival(self) -> float:
        """When the latest request came, on the monotonic clock."""
        return self._last_arrival

    def note_arrival(self) -> None:
        """Record that a request came, whether it will be admitted or not."""
        self._last_arrival = self._clock()

    def admit(self, client: str) -> Admission:
        """Admit a request.

        Args:
            client: name, or address; IPv6 addresses of one /64 network are one client.

        Raises:
            Overloaded: the client, or everyone together, asks for too much.

        """
        now = self._clock()
        backlog = self._backlog_seconds()
        with self._lock:
            known = self._client(fair_key(client), now)
            self._check_rate(known, now)
            self._check_room(known, now, backlog)
            if self._rate:
                known.tokens -= 1
            self._holders += known.running == 0
            known.running += 1
            known.receiving += 1
            self._running += 1
        return Admission(self, known)

    def charge(self, client: _Client, rows: int) -> None:
        """Count rows that a request holds beyond its first."""
        if self._rate and rows > 0:
            with self._lock:
                client.tokens -= rows

    def begin_computing(self, client: _Client) -> None:
        """Count a request whose message has arrived."""
        with self._lock:
            client.receiving -= 1
            self._computing += 1

    def release(self, client: _Client, *, computed: bool) -> None:
        """End a request. The pace of those whose message never came says nothing about others."""
        with self._lock:
            client.running -= 1
            self._holders -= client.running == 0
            self._running -= 1
            if computed:
                self._computing -= 1
                self._intervals.completed(self._clock(), self._computing)
            else:
                client.receiving -= 1

    def _client(self, key: str, now: float) -> _Client:
        known = self._clients.get(key)
        if known is None:
            known = self._clients[key] = _Client(self._burst, now)
            self._forget()
        self._clients.move_to_end(key)
        known.seen = now
        return known

    def _check_rate(self, client: _Client, now: float) -> None:
        if not self._rate:
            return
        client.tokens = min(self._burst, client.tokens + (now - client.filled) * self._rate)
        client.filled = now
        if client.tokens < 1:
            raise Overloaded(
                f"more than {self._rate:g} rows a second from this client",
                retry_after=(1 - client.tokens) / self._rate,
            )

    def _check_room(self, client: _Client, now: float, backlog: float) -> None:
        wait = max(backlog, _SPREAD * self._intervals.wait(self._computing, now))
        retry_after = min(10.0, max(0.1, wait))
        if self._running >= self._max_requests:
            raise Overloaded(
                f"server busy: {self._running} requests are in progress", retry_after=retry_after
            )
        if wait > self._max_wait and self._running:
            raise Overloaded(
                f"server busy: a request would wait {wait:.1f} s, at most {self._max_wait:g} s "
                "are allowed",
                retry_after=retry_after,
            )
        # Also for a client that is alone: who comes next finds room although no message came.
        if client.receiving >= self._max_requests - self._max_requests // 4:
            raise Overloaded(
                f"server busy: {client.receiving} requests of this client have not sent their "
                "message",
                retry_after=retry_after,
            )
        # Choudhury and Hahne, "Dynamic queue length thresholds" (1998): n busy clients settle at an
        # equal share of n + 1, so that who comes next finds room, and those who took more before
        # others came get nothing until they are back at it.
        # Requests that wait for their client may wait for long, so they get half.
        free = self._max_requests - self._running
        if max(client.running, 2 * client.receiving) >= free and self._others(client, now):
            raise Overloaded(
                f"server busy: {client.running} requests of this client are in progress, and other "
                "clients wait",
                retry_after=retry_after,
            )

    def _others(self, client: _Client, now: float) -> bool:
        """Whether any other client has requests in progress or asked a moment ago."""
        if self._holders > (client.running > 0):
            return True
        for other in reversed(self._clients.values()):
            if other is not client:
                return now - other.seen < _RECENT
        return False

    def _forget(self) -> None:
        while len(self._clients) > MAX_CLIENTS:
            key, oldest = next(iter(self._clients.items()))
            if oldest.running:
                self._clients.move_to_end(key)
                return
            del self._clients[key]


class _CompletionIntervals:
    """Running mean of the time between two completions while requests overlap.

    An idle server completes requests as rarely as they come, which says nothing about capacity, so
    an interval counts only when other requests were in progress throughout.
    """

    def __init__(self) -> None:
        self._last: float | None = None
        self._mean: float | None = None
        self._updated = float("-inf")

    def completed(self, now: float, running: int) -> None:
        """Record a completion; `running` requests are left in progress."""
        if self._last is not None:
            interval = now - self._last
            self._mean = (
                interval if self._mean is None else self._mean + _WEIGHT * (interval - self._mean)
            )
            self._updated = now
        self._last = now if running else None

    def wait(self, ahead: int, now: float) -> float:
        """Seconds until `ahead` requests have ended; 0 without recent measurements."""
        if self._mean is None or now - self._updated > _RECENT:
            return 0.0
        return ahead * self._mean


def fair_key(client: str) -> str:
    """Name under which a client's requests are counted: an IPv6 address by its /64 network."""
    if ":" not in client or client.startswith(("cert:", "token:")):
        return client
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return client
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        if mapped is not None:
            return str(mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return client
