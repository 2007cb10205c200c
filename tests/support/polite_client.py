"""A well-behaved client: a few requests a second, and retries only when it is told to.

It runs in a process of its own, beside attackers, and counts what it is answered.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context

import grpc
from grpc_health.v1 import health_pb2

from firewall.wire import firewall_pb2 as native
from tests.support.served import details
from tests.support.tiny import wire

PREDICT, CHECK = "/firewall.v1.FirewallService/Predict", "/grpc.health.v1.Health/Check"
#: Requests a second, and of them those that open a connection.
RATE, NEW_CONNECTIONS = 20, 2
#: Seconds within which an answer counts, and for which a client is ready to wait when it is told
#: to retry.
DEADLINE = 1.0

#: Sends a request, and returns its status and the seconds after which to retry, if that helps.
Ask = Callable[[], tuple[str, float | None]]
#: What counts as an answer: a verdict on the row.
_ANSWERED = ("OK", "200")


@dataclass
class Answers:
    """What a client was answered.

    Attributes:
        sent: requests.
        first: of them, those answered at the first try within a second.
        answered: those answered then, or at the one retry that the server asked for.
        seconds: of those answered at the first try.
        statuses: of first tries.

    """

    sent: int = 0
    first: int = 0
    answered: int = 0
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    @property
    def share(self) -> float:
        """Of the requests that were answered."""
        return self.answered / max(1, self.sent)

    @property
    def share_of_first(self) -> float:
        """Of the requests that were answered at the first try."""
        return self.first / max(1, self.sent)


@dataclass(frozen=True)
class Place:
    """Where a client asks: `grpc`, `check`, `rest`, or the path of a GET request, and a port."""

    kind: str
    port: int


@dataclass
class PoliteAnswers:
    """By place: over a client's own connection, and over connections that are opened anew."""

    kept: dict[str, Answers]
    new: dict[str, Answers]


@contextmanager
def polite_clients(
    places: list[Place], deadline: float = DEADLINE
) -> Iterator[Callable[[float], PoliteAnswers]]:
    """A process that is ready to ask each place; call with the seconds for which it asks."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        # To import this module takes seconds.
        pool.submit(_imported).result()
        yield lambda seconds: pool.submit(ask_politely, places, seconds, deadline).result()


def _imported() -> None:
    pass


def ask_politely(places: list[Place], seconds: float, deadline: float) -> PoliteAnswers:
    """Ask each place for some seconds."""
    found = PoliteAnswers(
        {place.kind: Answers() for place in places}, {place.kind: Answers() for place in places}
    )
    lock = threading.Lock()
    with ThreadPoolExecutor(64) as pool:
        kept = {place: _asker(place, deadline) for place in places}
        for ask in kept.values():
            # The connection is there before the first request that counts.
            ask()
        start = time.monotonic()
        for tick in range(int(seconds * RATE)):
            time.sleep(max(0.0, start + tick / RATE - time.monotonic()))
            for place in places:
                pool.submit(_count, kept[place], found.kept[place.kind], deadline, lock)
                if tick % (RATE // NEW_CONNECTIONS) == 0:
                    pool.submit(
                        _count, _anew(place, deadline), found.new[place.kind], deadline, lock
                    )
    return found


def _count(ask: Ask, answers: Answers, deadline: float, lock: threading.Lock) -> None:
    start = time.monotonic()
    status, retry_after = ask()
    spent = time.monotonic() - start
    first = answered = status in _ANSWERED and spent <= deadline
    if not answered and retry_after is not None and retry_after <= deadline:
        time.sleep(retry_after)
        begun = time.monotonic()
        answered = ask()[0] in _ANSWERED and time.monotonic() - begun <= deadline
    with lock:
        answers.sent += 1
        answers.first += first
        answers.answered += answered
        answers.statuses[status] += 1
        if first:
            answers.seconds.append(spent)


def _asker(place: Place, deadline: float, *, anew: bool = False) -> Ask:
    if place.kind in ("grpc", "check"):
        # Channels with the same options would share one connection.
        options = (("grpc.use_local_subchannel_pool", 1),)
        channel = grpc.insecure_channel(f"127.0.0.1:{place.port}", options)
        return _over_grpc(place.kind, channel, deadline, closes=anew)
    return _over_http(place, deadline, anew=anew)


def _anew(place: Place, deadline: float) -> Ask:
    return lambda: _asker(place, deadline, anew=True)()


def _over_grpc(kind: str, channel: grpc.Channel, deadline: float, *, closes: bool) -> Ask:
    if kind == "check":
        method, request = CHECK, health_pb2.HealthCheckRequest().SerializeToString()
    else:
        x = wire(1, 50)
        tensor = native.Tensor(datatype="FP32", shape=x.shape, data=x.tobytes())
        message = native.PredictRequest(model="tiny", input=native.Input(tensor=tensor))
        method, request = PREDICT, message.SerializeToString()
    call = channel.unary_unary(method)

    def ask() -> tuple[str, float | None]:
        try:
            call(request, timeout=2 * deadline)
            return "OK", None
        except grpc.RpcError as error:
            info = details(error).get("RetryInfo")
            after = None if info is None else info.retry_delay.ToNanoseconds() / 1e9
            return f"{error.code().name}: {error.details()}"[:100], after
        finally:
            if closes:
                channel.close()

    return ask


def _over_http(place: Place, deadline: float, *, anew: bool) -> Ask:
    path = place.kind if place.kind.startswith("/") else "/v2/models/tiny/infer"
    body = None
    if not place.kind.startswith("/"):
        x = wire(1, 50)
        tensor = {"name": "image", "datatype": "FP32", "shape": x.shape, "data": x.ravel().tolist()}
        body = json.dumps({"inputs": [tensor]}).encode()
    # A few connections that are kept, as many as requests overlap.
    idle: list[http.client.HTTPConnection] = []

    def ask() -> tuple[str, float | None]:
        try:
            connection = idle.pop()
        except IndexError:
            connection = http.client.HTTPConnection("127.0.0.1", place.port, timeout=2 * deadline)
        try:
            connection.request("GET" if body is None else "POST", path, body)
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return type(error).__name__, None
        if anew:
            connection.close()
        else:
            idle.append(connection)
        after = response.headers.get("Retry-After")
        return str(response.status), None if after is None else float(after)

    return ask
