"""Our methods in gRPC's own server: for operators, and where `--transport grpc` asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from firewall.serve.arrival import Arrivals
from firewall.serve.boundary import Boundary, RawMethod
from firewall.serve.gate import HURRY, PATIENCE
from firewall.serve.staged import finish
from firewall.serve.status import Status
from firewall.serve.workers import Workers


@dataclass(frozen=True)
class _Wrapped:
    """A method's handlers. Both take a stream, of which one message is read.

    Attributes:
        answering: as a rule.
        refusing: of the stream nothing is read: nothing has to arrive to be refused.

    """

    answering: grpc.RpcMethodHandler[Any, Any]
    refusing: grpc.RpcMethodHandler[Any, Any]


class Interceptor(grpc.ServerInterceptor):
    """Wraps every method of the named services; others (health, reflection) pass untouched.

    The methods it wraps are `RawMethod`s: instead of gRPC's context they get a `Call`. Health and
    reflection have threads of their own, and answer while every other is busy.
    """

    def __init__(
        self,
        services: frozenset[str],
        boundary: Boundary,
        workers: Workers,
        arrivals: Arrivals,
        side: ThreadPoolExecutor,
        draining: Callable[[], bool],
    ) -> None:
        """Wrap nothing yet.

        Args:
            services: whose methods are wrapped.
            boundary: of them.
            workers: the server's threads.
            arrivals: looks after calls whose message does not come.
            side: threads for health and reflection.
            draining: whether the server is shutting down.

        """
        self._services, self._boundary = services, boundary
        self._workers, self._arrivals, self._side = workers, arrivals, side
        self._draining = draining
        #: By path, the methods that were asked for so far.
        self._wrapped: dict[str, _Wrapped] = {}

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
        return wrapped.refusing if self._boundary.overfull() else wrapped.answering

    def _wrap(self, service: str, method: str, raw: RawMethod) -> _Wrapped:
        def answer(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            receive = partial(self._arrivals.first, requests, context, self._patience)
            outcome = finish(
                self._boundary.answering(service, method, raw, _Receiving(receive), context)
            )
            if isinstance(outcome, Status):
                context.abort_with_status(outcome)
            return outcome

        def turn_away(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            context.abort_with_status(self._boundary.turn_away(service, method, context))

        turn_away.experimental_thread_pool = self._side  # type: ignore[attr-defined]
        return _Wrapped(
            answering=grpc.stream_unary_rpc_method_handler(answer),
            refusing=grpc.stream_unary_rpc_method_handler(turn_away),
        )

    def _patience(self) -> float:
        """Seconds that a call may wait for its message."""
        return HURRY if self._workers.waiting or self._draining() else PATIENCE

    def _aside(self, handler: Any) -> Any:
        """The same handler, run by the side pool."""
        if handler.unary_unary is not None:

            def check(requests: Iterator[Any], context: Any, inner: Any = handler) -> Any:
                request = self._arrivals.first(requests, context, lambda: HURRY)
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


class _Receiving:
    """The message of a call, for which it waits."""

    def __init__(self, receive: Callable[[], bytes]) -> None:
        self._receive = receive

    def wait(self) -> bytes:
        """As soon as it is there; errors as `Arrivals.first`."""
        return self._receive()
