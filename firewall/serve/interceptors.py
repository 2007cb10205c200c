"""The boundary of our services: ids, metrics, and errors to status."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from firewall.errors import Cancelled, InvalidInput, NotReady, Overloaded
from firewall.serve.admission import Admission
from firewall.serve.arrival import Arrivals
from firewall.serve.call import Call, RequestIds
from firewall.serve.crew import Crew
from firewall.serve.direct import Direct, Exchange, Method, Room, supported
from firewall.serve.identity import Names
from firewall.serve.metrics import Metrics
from firewall.serve.pace import Pace
from firewall.serve.staged import Given, Steps, finish
from firewall.serve.status import REQUEST_ID_KEY, Status, to_status
from firewall.serve.tracing import Tracer
from firewall.serve.workers import Workers

#: Seconds for which a call waits for its message once many do: when others wait for its place, and
#: when none does.
_HURRY, _PATIENCE = 0.5, 30.0
#: How much longer than the pace tells a request may take: its own batch has to end as well, and it
#: is not the mean request that is to be in time.
_SPREAD = 1.6
#: Bytes of a message whose request may share a thread with others.
_SMALL = 64 << 10


@dataclass(frozen=True)
class RawMethod:
    """A method of ours: the bytes of a request and its call to the bytes of an answer.

    Attributes:
        run: in a thread that may wait.
        steps: the same in steps, where that can be said.

    """

    run: Callable[[bytes, Call], bytes]
    steps: Callable[[bytes, Call], Steps[bytes]] | None = None


@dataclass(frozen=True)
class _Wrapped:
    """A method's handlers. Both take a stream, of which one message is read.

    Attributes:
        answering: as a rule.
        refusing: of the stream nothing is read: nothing has to arrive to be refused.

    """

    answering: grpc.RpcMethodHandler[Any, Any]
    refusing: grpc.RpcMethodHandler[Any, Any]


class Boundary(grpc.ServerInterceptor):
    """Wraps every method of the named services; others (health, reflection) pass untouched.

    The methods it wraps are `RawMethod`s: instead of gRPC's context they get a `Call`. Its
    `executor` is to be the server's. Requests beyond the backlog are turned away before they take a
    thread. Health and reflection have threads of their own, and answer while every other is busy.
    """

    def __init__(
        self,
        services: frozenset[str],
        metrics: Metrics,
        draining: Callable[[], bool],
        *,
        threads: int,
        backlog: int,
        max_wait: float,
        side: ThreadPoolExecutor,
        identity: Names,
        admission: Admission,
        name: str = "rpc",
        status: Callable[[Exception, str], Status] = to_status,
        tracer: Tracer | None = None,
        secure: bool = False,
        behind: Callable[[], float] = lambda: 0.0,
        direct: bool = True,
    ) -> None:
        """Take no thread yet.

        Args:
            services: whose methods are wrapped.
            metrics: told of every request.
            draining: whether the server is shutting down.
            threads: requests that are answered at a time.
            backlog: requests that may wait.
            max_wait: seconds for which one may be foreseen to wait.
            side: threads for health and reflection.
            identity: whom a client is taken for.
            admission: of clients.
            name: of threads.
            status: of an error.
            tracer: told of every request, if there is one.
            secure: whether calls come over TLS.
            behind: seconds that what waits for the guards will take.
            direct: whether messages are received without a thread, where that is supported.

        """
        self._tracer, self._secure = tracer, secure
        self._ids = RequestIds()
        self._arrivals = Arrivals()
        #: By path, the methods that were asked for so far.
        self._wrapped: dict[str, _Wrapped] = {}
        self._identity, self._admission = identity, admission
        self._status = status
        self._services = services
        self._metrics = metrics
        self._draining = draining
        self._workers = Workers(threads, name)
        self._crew = Crew(self._workers.submit)
        self._room: Room = self._workers
        #: For `grpc.server`.
        self.executor: Workers | Direct = self._workers
        if direct and supported():
            self._room = self.executor = Direct(
                self._workers, self._arrivals, most=threads, patience=self._patience
            )
        self._backlog, self._max_wait, self._behind = backlog, max_wait, behind
        self._pace = Pace()
        self._side = side
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

    def close(self, timeout: float) -> None:
        """Look after nobody's message any more, and wait for threads whose call is over."""
        self._crew.close(timeout)
        self._workers.close(timeout)
        self._arrivals.close()

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Any],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler that gRPC found for a call."""
        path = handler_call_details.method
        wrapped = self._wrapped.get(path)
        if wrapped is None:
            handler = continuation(handler_call_details)
            if handler is None:
                return None
            service, _, method = path.removeprefix("/").partition("/")
            if service not in self._services:
                return self._aside(handler)
            wrapped = self._wrapped[path] = self._wrap(service, method, handler.unary_unary)
        self._last_arrival = time.monotonic()
        waiting = self._room.waiting
        if waiting >= self._backlog or self._wait(waiting) > self._max_wait:
            return wrapped.refusing
        return wrapped.answering

    def _wrap(self, service: str, method: str, raw: RawMethod) -> _Wrapped:
        """Every way in which a method can be answered, made once."""

        def ordinary(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            receive = partial(self._arrivals.first, requests, context, self._patience)
            outcome = finish(self._answer(service, method, raw, _Receiving(receive), context))
            if isinstance(outcome, Status):
                context.abort_with_status(outcome)
            return outcome

        def begun(exchange: Exchange) -> bool:
            """Who asks, and whether it may, is known before anything is received."""
            receiving = _Receiving(_nothing)
            answer = self._answer(service, method, raw, receiving, exchange.context)
            steps = self._end(exchange, answer)
            try:
                next(steps)
            except StopIteration:
                return False
            exchange.steps = steps
            return True

        def arrived(exchange: Exchange, message: bytes | None) -> None:
            came = _came(message, exchange.context)
            steps, exchange.steps = exchange.steps, None
            if raw.steps is not None and isinstance(came, bytes) and len(came) <= _SMALL:
                self._crew.give(steps, came)
            else:
                self._workers.submit(finish, steps, Given(came))

        def turn_away(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            context.abort_with_status(self._refusal(service, method, context))

        def refuse(exchange: Exchange) -> bool:
            exchange.end(self._refusal(service, method, exchange.context))
            return False

        answering = Method(ordinary, begun, arrived)
        refusing: Any = Method(turn_away, refuse, arrived, waits=False)
        if self.executor is self._workers:
            turn_away.experimental_thread_pool = self._side  # type: ignore[attr-defined]
            refusing = turn_away
        return _Wrapped(
            answering=grpc.stream_unary_rpc_method_handler(answering),
            refusing=grpc.stream_unary_rpc_method_handler(refusing),
        )

    def _wait(self, waiting: int) -> float:
        """Seconds that a request which comes now would take: all that are here end before it, at
        the pace at which requests have ended while others waited.
        """
        behind = self._behind()
        if not waiting and not behind and not self._pace.pressed(time.monotonic()):
            return 0.0
        return max(behind, _SPREAD * self._pace.wait(waiting + self._working))

    def _patience(self) -> float:
        """Seconds that a call may wait for its message."""
        return _HURRY if self._room.waiting or self._draining() else _PATIENCE

    def _refusal(self, service: str, method: str, context: grpc.ServicerContext) -> Status:
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

    def _aside(self, handler: Any) -> Any:
        """The same handler, run by the side pool."""
        if handler.unary_unary is not None:

            def check(requests: Iterator[Any], context: Any, inner: Any = handler) -> Any:
                request = self._arrivals.first(requests, context, lambda: _HURRY)
                return inner.unary_unary(request, context)

            check.experimental_thread_pool = self._side  # type: ignore[attr-defined]
            return grpc.stream_unary_rpc_method_handler(
                check, handler.request_deserializer, handler.response_serializer
            )
        for kind in ("unary_stream", "stream_stream"):
            inner = getattr(handler, kind)
            if inner is None:
                continue

            def behave(request: Any, context: Any, inner: Any = inner) -> Any:
                return inner(request, context)

            behave.experimental_thread_pool = self._side  # type: ignore[attr-defined]
            return handler._replace(**{kind: behave})
        return handler

    def _end(self, exchange: Exchange, steps: Steps[bytes | Status]) -> Steps[None]:
        """The exchange has an end, whatever happens."""
        outcome: bytes | Status | None = None
        try:
            outcome = yield from steps
        except Exception as error:
            outcome = self._status(error, "")
        finally:
            if outcome is None:
                outcome = self._status(NotReady("the server is shutting down"), "")
            exchange.end(outcome)

    def _answer(
        self,
        service: str,
        method: str,
        raw: RawMethod,
        receiving: _Receiving,
        context: grpc.ServicerContext,
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

    def _identify(
        self, call: Call, context: grpc.ServicerContext, metadata: dict[str, Any]
    ) -> None:
        """Whose call it is and under which id, while requests are answered at all."""
        if REQUEST_ID_KEY in metadata:
            _name(call, metadata[REQUEST_ID_KEY])
        # Without TLS there is nothing in it.
        auth = context.auth_context() if self._secure else {}
        call.client = self._identity.of(context.peer(), metadata, auth)
        if self._draining():
            raise NotReady("the server is shutting down")

    def _call_of(self, context: grpc.ServicerContext) -> Call:
        remaining = context.time_remaining()
        # Without a deadline, gRPC says None or a number of years.
        deadline = None if remaining is None or remaining > 1e7 else time.monotonic() + remaining
        return Call(self._ids.new(), "unknown", deadline, context.add_callback, context.is_active)


class _Receiving:
    """The message of a call, for which it waits."""

    def __init__(self, receive: Callable[[], bytes]) -> None:
        self._receive = receive

    def wait(self) -> bytes:
        """As soon as it is there; errors as `Arrivals.first`."""
        return self._receive()


def _nothing() -> bytes:
    raise NotReady("the message is received elsewhere")


def _came(message: bytes | None, context: grpc.ServicerContext) -> bytes | Exception:
    """The message of an exchange, or what is told of `Arrivals.first`'s errors."""
    if not context.is_active():
        return Cancelled("the caller went away, or the message did not come in time")
    return InvalidInput("message", "is missing; expected one") if message is None else message


def _name(call: Call, value: str | bytes) -> None:
    if not isinstance(value, str):
        raise InvalidInput(REQUEST_ID_KEY, "expected text")
    call.name(REQUEST_ID_KEY, value)
