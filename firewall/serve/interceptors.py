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

from firewall.errors import InvalidInput, NotReady, Overloaded
from firewall.serve.admission import Admission
from firewall.serve.arrival import Arrivals
from firewall.serve.call import Call, new_request_id
from firewall.serve.identity import Names
from firewall.serve.metrics import Metrics
from firewall.serve.pace import Pace
from firewall.serve.status import REQUEST_ID_KEY, Status, to_status
from firewall.serve.tracing import Tracer
from firewall.serve.workers import Workers

#: A handler of ours: the bytes of a request and its call to the bytes of an answer.
RawMethod = Callable[[bytes, Call], bytes]
#: Seconds for which a thread waits for a message once many do: when requests wait for a thread, and
#: when none does.
_HURRY, _PATIENCE = 0.5, 30.0
#: How much longer than the pace tells a request may take: its own batch has to end as well, and it
#: is not the mean request that is to be in time.
_SPREAD = 1.6


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

    The methods it wraps are `RawMethod`s: instead of gRPC's context they get a `Call`. Requests
    beyond the backlog are turned away before they take a thread, by threads of another pool, which
    also keeps health and reflection answering while every worker is busy.
    """

    def __init__(
        self,
        services: frozenset[str],
        metrics: Metrics,
        draining: Callable[[], bool],
        *,
        workers: Workers,
        backlog: int,
        max_wait: float,
        side: ThreadPoolExecutor,
        identity: Names,
        admission: Admission,
        status: Callable[[Exception, str], Status] = to_status,
        tracer: Tracer | None = None,
        secure: bool = False,
        behind: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._tracer, self._secure = tracer, secure
        self._arrivals = Arrivals()
        #: By path, the methods that were asked for so far.
        self._wrapped: dict[str, _Wrapped] = {}
        self._identity, self._admission = identity, admission
        self._status = status
        self._services = services
        self._metrics = metrics
        self._draining = draining
        self._workers = workers
        self._backlog, self._max_wait, self._behind = backlog, max_wait, behind
        self._pace = Pace()
        self._side = side
        self._lock = threading.Lock()
        self._running = 0
        #: Of these, those that are not refused for want of room.
        self._answering = 0
        self._last_arrival = 0.0

    @property
    def last_arrival(self) -> float:
        """When the last request of ours began to arrive, on the monotonic clock."""
        return self._last_arrival

    @property
    def running(self) -> int:
        """Requests of ours that a thread is answering."""
        return self._running

    def close(self) -> None:
        """Look after nobody's message any more."""
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
        waiting = self._workers.waiting
        if waiting >= self._backlog or self._wait(waiting) > self._max_wait:
            return wrapped.refusing
        return wrapped.answering

    def _wrap(self, service: str, method: str, run: RawMethod) -> _Wrapped:
        """Every way in which a method can be answered, made once."""

        def behave(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            receive = partial(self._arrivals.first, requests, context, self._patience)
            return self._call(service, method, run, receive, context)

        def turn_away(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            return self._call(service, method, self._refuse, bytes, context, refused=True)

        turn_away.experimental_thread_pool = self._side  # type: ignore[attr-defined]
        return _Wrapped(
            answering=grpc.stream_unary_rpc_method_handler(behave),
            refusing=grpc.stream_unary_rpc_method_handler(turn_away),
        )

    def _wait(self, waiting: int) -> float:
        """Seconds that a request which comes now would take: all that are here end before it, at
        the pace at which requests have ended while others waited.
        """
        behind = self._behind()
        if not waiting and not behind:
            return 0.0
        return max(behind, _SPREAD * self._pace.wait(waiting + self._answering))

    def _patience(self) -> float:
        """Seconds that a thread may wait for a message."""
        return _HURRY if self._workers.waiting or self._draining() else _PATIENCE

    def _refuse(self, request: bytes, call: Call) -> bytes:
        waiting = self._workers.waiting
        raise Overloaded(
            f"the queue is full: {waiting + self._answering} requests are ahead",
            retry_after=min(10.0, max(0.1, self._wait(waiting))),
        )

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

    def _call(
        self,
        service: str,
        method: str,
        run: RawMethod,
        receive: Callable[[], bytes],
        context: grpc.ServicerContext,
        *,
        refused: bool = False,
    ) -> bytes:
        start = time.perf_counter()
        self._metrics.started(service, method)
        call = self._call_of(context)
        failure, trace = None, None
        with self._lock:
            self._running += 1
            self._answering += not refused
        try:
            metadata = dict(context.invocation_metadata())
            if self._tracer is not None:
                trace = self._tracer.begin(service, method, metadata)
            if REQUEST_ID_KEY in metadata:
                _name(call, metadata[REQUEST_ID_KEY])
            # Without TLS there is nothing in it.
            auth = context.auth_context() if self._secure else {}
            call.client = self._identity.of(context.peer(), metadata, auth)
            if self._draining():
                raise NotReady("the server is shutting down")
            with self._admission.enter(call.client):
                answer = run(receive(), call)
        except Exception as error:
            failure = self._status(error, call.request_id)
        finally:
            with self._lock:
                self._running -= 1
                self._answering -= not refused
            if not refused:
                busy = self._workers.waiting > 0 or self._behind() > 0
                self._pace.ended(busy, time.monotonic())
        code = "OK" if failure is None else failure.code.name
        self._metrics.handled(service, method, code, time.perf_counter() - start)
        if trace is not None:
            trace.end(call, code)
        if failure is not None:
            context.abort_with_status(failure)
        context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
        return answer

    def _call_of(self, context: grpc.ServicerContext) -> Call:
        remaining = context.time_remaining()
        # Without a deadline, gRPC says None or a number of years.
        deadline = None if remaining is None or remaining > 1e7 else time.monotonic() + remaining
        return Call(new_request_id(), "unknown", deadline, context.add_callback, context.is_active)


def _name(call: Call, value: str | bytes) -> None:
    if not isinstance(value, str):
        raise InvalidInput(REQUEST_ID_KEY, "expected text")
    call.name(REQUEST_ID_KEY, value)
