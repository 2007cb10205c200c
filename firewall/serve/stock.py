"""gRPC's own services, health and reflection, over our transport: their servicers as they are.

Each call has a thread of a small pool, so that they answer while every other thread is busy.
"""

from __future__ import annotations

import contextlib
import logging
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from firewall.errors import Cancelled, FirewallError, InvalidInput
from firewall.serve.arrival import Arrivals
from firewall.serve.exchange import Arrived, Exchange
from firewall.serve.gate import HURRY
from firewall.serve.grpc_wire import Metadata
from firewall.serve.status import Status

log = logging.getLogger(__name__)

#: Seconds that a stream may be silent: reflection's clients ask and go.
_SILENCE = 300.0


class _Context:
    """What gRPC's own services ask of a servicer context."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.code: grpc.StatusCode | None = None
        self.details = ""

    def is_active(self) -> bool:
        return self._exchange.is_active()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return self._exchange.add_callback(callback)

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
        """Answer a call."""
        try:
            self._side.submit(self._answer, exchange)
        except RuntimeError:
            exchange.end(_unavailable())

    def _answer(self, exchange: Exchange) -> None:
        handler: Any = self._handlers[exchange.head.path]
        read = handler.request_deserializer or bytes
        write = handler.response_serializer or bytes
        context = _Context(exchange)
        try:
            if handler.unary_unary is not None:
                answer = handler.unary_unary(self._only(exchange, read), context)
                exchange.end(context.status() or write(answer))
            elif getattr(handler.unary_stream, "experimental_non_blocking", False):
                # It keeps no thread: it tells what there is when there is something.
                request = self._only(exchange, read)
                handler.unary_stream(request, context, _teller(exchange, write))
            else:
                if handler.unary_stream is not None:
                    answers = handler.unary_stream(self._only(exchange, read), context)
                else:
                    answers = handler.stream_stream(self._every(exchange, read), context)
                for answer in answers:
                    exchange.send(write(answer))
                exchange.end(context.status())
        except Cancelled:
            # Gone, or silent for too long, or it takes no answers.
            exchange.cancel()
        except FirewallError as error:
            exchange.end(_said(grpc.StatusCode.INVALID_ARGUMENT, str(error)))
        except Exception:
            log.exception("%s failed", exchange.head.path)
            exchange.end(_said(grpc.StatusCode.INTERNAL, "internal error"))

    def _only(self, exchange: Exchange, read: Any) -> Any:
        """The one message of a call."""
        for message in self._messages(exchange, HURRY):
            return _parsed(message, read)
        raise InvalidInput("message", "is missing; expected one")

    def _every(self, exchange: Exchange, read: Any) -> Iterator[Any]:
        for message in self._messages(exchange, _SILENCE):
            yield _parsed(message, read)

    def _messages(self, exchange: Exchange, patience: float) -> Iterator[bytes]:
        while True:
            box: queue.SimpleQueue[Arrived] = queue.SimpleQueue()
            self._arrivals.expect(id(exchange), exchange, lambda: patience)
            try:
                exchange.receive(box.put)
                came = box.get()
            finally:
                self._arrivals.came(id(exchange))
            if came is None:
                return
            if isinstance(came, Exception):
                raise came
            yield came


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


def _unavailable() -> Status:
    return _said(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
