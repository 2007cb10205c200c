"""gRPC's own services, health and reflection, over our transport: their servicers as they are.

Each call has a thread of a small pool, so that they answer while every other thread is busy.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from firewall.errors import Cancelled, InvalidInput
from firewall.serve.arrival import Arrivals
from firewall.serve.exchange import Arrived, Exchange
from firewall.serve.gate import HURRY
from firewall.serve.grpc_wire import Metadata
from firewall.serve.status import Status, to_status

log = logging.getLogger(__name__)

#: Seconds that a stream may be silent: reflection's clients ask and go.
_SILENCE = 300.0
#: Calls that wait for their message or for a thread, at most; each of them may hold a message.
_WAITING = 256


class _Context:
    """What gRPC's own services ask of a servicer context."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.code: grpc.StatusCode | None = None
        self.details = ""

    def is_active(self) -> bool:
        return self._exchange.is_active()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        there = self._exchange.add_callback(callback)
        if not there:
            # gRPC's servicers do not look at what is returned.
            callback()
        return there

    def invocation_metadata(self) -> Metadata:
        return self._exchange.invocation_metadata()

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def status(self) -> Status | None:
        """What the method said, unless all is well."""
        if self.code is None or self.code is grpc.StatusCode.OK:
            return None
        return _said(self.code, self.details)


class Stock:
    """Takes servicers as `grpc.Server` does, and answers their calls."""

    #: Bytes of a message.
    most = 64 << 10

    def __init__(self, side: ThreadPoolExecutor, arrivals: Arrivals) -> None:
        """Know no service yet.

        Args:
            side: threads.
            arrivals: looks after calls whose message does not come.

        """
        self._side, self._arrivals = side, arrivals
        self._lock = threading.Lock()
        #: Calls whose message has not come, those first that have been silent for longest.
        self._silent: dict[int, Exchange] = {}
        #: Calls whose message is there, and that have no thread yet.
        self._queued = 0
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """What generated code tells a server."""
        for method, handler in method_handlers.items():
            self._handlers[f"/{service_name}/{method}"] = handler

    def add_generic_rpc_handlers(
        self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]
    ) -> None:
        """Likewise; the same methods."""

    def knows(self, path: str) -> bool:
        """Whether it has a method."""
        return path in self._handlers

    def begin(self, exchange: Exchange) -> None:
        """Answer a call. A thread is taken when its message is there."""
        self._receive(exchange, HURRY)

    def _receive(self, exchange: Exchange, patience: float) -> None:
        """Have its next message answered, unless it is silent for so many seconds, or there is no
        room and no other has been silent for longer: who says nothing keeps health from nobody.
        """
        key, longest = id(exchange), None
        with self._lock:
            full = len(self._silent) + self._queued >= _WAITING
            if full and self._silent:
                longest = self._silent.pop(next(iter(self._silent)))
            room = not full or longest is not None
            if room:
                self._silent[key] = exchange
        if longest is not None:
            longest.cancel()
        if not room:
            text = f"{_WAITING} calls of health and reflection wait"
            exchange.end(_said(grpc.StatusCode.RESOURCE_EXHAUSTED, text))
            return
        self._arrivals.expect(key, exchange, lambda: patience)

        def told(came: Arrived) -> None:
            self._arrivals.came(key)
            gone = isinstance(came, Cancelled)
            with self._lock:
                self._silent.pop(key, None)
                self._queued += not gone
            if gone:
                return
            try:
                self._side.submit(self._answer, exchange, came)
            except RuntimeError:
                self._begun()
                exchange.end(_said(grpc.StatusCode.UNAVAILABLE, "the server is shutting down"))

        exchange.receive(told)

    def _begun(self) -> None:
        """A call has its thread."""
        with self._lock:
            self._queued -= 1

    def _answer(self, exchange: Exchange, came: Arrived) -> None:
        self._begun()
        try:
            self._answered(exchange, came)
        except Cancelled:
            # It takes no answers.
            exchange.cancel()
        except Exception as error:
            exchange.end(to_status(error, ""))

    def _answered(self, exchange: Exchange, came: Arrived) -> None:
        handler: Any = self._handlers[exchange.head.path]
        write = handler.response_serializer or bytes
        context = _Context(exchange)
        if isinstance(came, Exception):
            raise came
        if came is None:
            if handler.stream_stream is None:
                raise InvalidInput("message", "is missing; expected one")
            exchange.end(None)
            return
        request = _parsed(came, handler.request_deserializer or bytes)
        if handler.unary_unary is not None:
            answer = handler.unary_unary(request, context)
            exchange.end(context.status() or write(answer))
        elif getattr(handler.unary_stream, "experimental_non_blocking", False):
            # It keeps no thread: it tells what there is when there is something.
            handler.unary_stream(request, context, _teller(exchange, write))
        else:
            # Message by message: no thread waits for the next, and reflection remembers nothing.
            for answer in handler.stream_stream(iter([request]), context):
                exchange.send(write(answer))
            self._receive(exchange, _SILENCE)


def _parsed(message: bytes, read: Any) -> Any:
    try:
        return read(message)
    except Exception as error:
        raise InvalidInput("message", "is not what this method takes") from error


def _teller(exchange: Exchange, write: Any) -> Callable[[Any], None]:
    """Told every answer, and None after the last."""

    def tell(answer: Any) -> None:
        with contextlib.suppress(Cancelled):
            if answer is None:
                exchange.end(None)
            else:
                exchange.send(write(answer))

    return tell


def _said(code: grpc.StatusCode, text: str) -> Status:
    return Status(code, text, ())
