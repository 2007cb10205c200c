"""The boundary of our services: ids, who asks, metrics, and errors to status.

It knows of no transport: what carries a call gives it a `Context` and the bytes of a message.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from firewall.errors import InvalidInput, NotReady, Overloaded
from firewall.serve.admission import Admission
from firewall.serve.call import Call, RequestIds
from firewall.serve.gate import Room
from firewall.serve.identity import Names
from firewall.serve.metrics import Metrics
from firewall.serve.pace import Pace
from firewall.serve.staged import Pending, Steps
from firewall.serve.status import REQUEST_ID_KEY, Status, to_status
from firewall.serve.tracing import Tracer

#: How much longer than the pace tells a request may take: its own batch has to end as well, and it
#: is not the mean request that is to be in time.
_SPREAD = 1.6


class Context(Protocol):
    """What is asked of a call, whoever carries it: gRPC's servicer context, or an exchange."""

    def peer(self) -> str:
        """Who asks, as gRPC writes it."""
        ...

    def auth_context(self) -> Mapping[str, Any]:
        """Of the client's certificate."""
        ...

    def invocation_metadata(self) -> Any:
        """The client's, in order."""
        ...

    def time_remaining(self) -> float | None:
        """Seconds; None is for ever."""
        ...

    def is_active(self) -> bool:
        """Whether the client still waits."""
        ...

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Told when the client goes away; False when it already has."""
        ...

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """What goes with the status."""
        ...


@dataclass(frozen=True)
class RawMethod:
    """A method of ours: the bytes of a request and its call to the bytes of an answer.

    Attributes:
        run: in a thread that may wait.
        steps: the same in steps, where that can be said.

    """

    run: Callable[[bytes, Call], bytes]
    steps: Callable[[bytes, Call], Steps[bytes]] | None = None


class Boundary:
    """What is done about every call of ours, before its method and after it.

    Requests beyond the backlog are to be turned away before they take a thread.
    """

    def __init__(
        self,
        room: Room,
        metrics: Metrics,
        draining: Callable[[], bool],
        *,
        backlog: int,
        max_wait: float,
        identity: Names,
        admission: Admission,
        status: Callable[[Exception, str], Status] = to_status,
        tracer: Tracer | None = None,
        secure: bool = False,
        behind: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Nobody asks yet.

        Args:
            room: how full the server is.
            metrics: told of every request.
            draining: whether the server is shutting down.
            backlog: requests that may wait.
            max_wait: seconds for which one may be foreseen to wait.
            identity: whom a client is taken for.
            admission: of clients.
            status: of an error.
            tracer: told of every request, if there is one.
            secure: whether calls come over TLS.
            behind: seconds that what waits for the guards will take.

        """
        self._tracer, self._secure = tracer, secure
        self._ids = RequestIds()
        self._identity, self._admission = identity, admission
        self._status = status
        self._metrics = metrics
        self._draining = draining
        self._room = room
        self._backlog, self._max_wait, self._behind = backlog, max_wait, behind
        self._pace = Pace()
        self._last_arrival = 0.0
        self._lock = threading.Lock()
        #: Requests whose message is there, and that have not ended.
        self._working = 0

    @property
    def last_arrival(self) -> float:
        """When the last request of ours began to arrive, on the monotonic clock."""
        return self._last_arrival

    @property
    def idle(self) -> bool:
        """Whether no request of ours waits or is being answered."""
        return not self._room.busy and not self._room.waiting

    def overfull(self) -> bool:
        """Whether a request that begins to arrive now is to be turned away."""
        self._last_arrival = time.monotonic()
        waiting = self._room.waiting
        return waiting >= self._backlog or self._wait(waiting) > self._max_wait

    def status(self, error: Exception, request_id: str) -> Status:
        """Of an error that nobody else answers for."""
        return self._status(error, request_id)

    def answering(
        self,
        service: str,
        method: str,
        raw: RawMethod,
        receiving: Pending,
        context: Context,
    ) -> Steps[bytes | Status]:
        """From headers to an answer; waits for the message in between."""
        start = time.perf_counter()
        self._metrics.started(service, method)
        call = self._call_of(context)
        failure, trace, works = None, None, False
        answer = b""
        try:
            metadata = dict(context.invocation_metadata())
            if self._tracer is not None:
                trace = self._tracer.begin(service, method, metadata)
                call.trace = trace.context
            self._identify(call, context, metadata)
            with self._admission.enter(call.client):
                message: bytes = yield receiving
                with self._lock:
                    self._working += 1
                works = True
                if raw.steps is not None:
                    answer = yield from raw.steps(message, call)
                else:
                    answer = raw.run(message, call)
        except Exception as error:
            failure = self._status(error, call.request_id)
        finally:
            if works:
                with self._lock:
                    self._working -= 1
                busy = self._room.waiting > 0 or self._behind() > 0
                self._pace.ended(busy, time.monotonic(), last=not self._working)
        code = "OK" if failure is None else failure.code.name
        self._metrics.handled(service, method, code, time.perf_counter() - start)
        if trace is not None:
            trace.end(call, code)
        if failure is not None:
            return failure
        context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
        return answer

    def turn_away(self, service: str, method: str, context: Context) -> Status:
        """Of a request for which there is no room. Read nothing of it, and take no time."""
        start = time.perf_counter()
        self._metrics.started(service, method)
        call = self._call_of(context)
        trace = None
        try:
            metadata = dict(context.invocation_metadata())
            if self._tracer is not None:
                trace = self._tracer.begin(service, method, metadata)
            self._identify(call, context, metadata)
            waiting = self._room.waiting
            raise Overloaded(
                f"the queue is full: {waiting + self._room.busy} requests are ahead",
                retry_after=min(10.0, max(0.1, self._wait(waiting))),
            )
        except Exception as error:
            status = self._status(error, call.request_id)
        if trace is not None:
            trace.end(call, status.code.name)
        self._metrics.handled(service, method, status.code.name, time.perf_counter() - start)
        return status

    def _wait(self, waiting: int) -> float:
        """Seconds that a request which comes now would take: all that are here end before it, at
        the pace at which requests have ended while others waited.
        """
        behind = self._behind()
        if not waiting and not behind and not self._pace.pressed(time.monotonic()):
            return 0.0
        return max(behind, _SPREAD * self._pace.wait(waiting + self._working))

    def _identify(self, call: Call, context: Context, metadata: dict[str, Any]) -> None:
        """Whose call it is and under which id, while requests are answered at all."""
        if REQUEST_ID_KEY in metadata:
            _name(call, metadata[REQUEST_ID_KEY])
        # Without TLS there is nothing in it.
        auth = context.auth_context() if self._secure else {}
        call.client = self._identity.of(context.peer(), metadata, auth)
        if self._draining():
            raise NotReady("the server is shutting down")

    def _call_of(self, context: Context) -> Call:
        remaining = context.time_remaining()
        # Without a deadline, gRPC says None or a number of years.
        deadline = None if remaining is None or remaining > 1e7 else time.monotonic() + remaining
        return Call(self._ids.new(), "unknown", deadline, context.add_callback, context.is_active)


def _name(call: Call, value: str | bytes) -> None:
    if not isinstance(value, str):
        raise InvalidInput(REQUEST_ID_KEY, "expected text")
    call.name(REQUEST_ID_KEY, value)
