"""Calls for which no thread waits: gRPC's own thread begins them, receives, and says who is next.

gRPC's Python server gives every call to a thread, and the thread waits for the message. That costs
two changes of thread for each call, and a thread for each client that sends slowly. It hands the
call over by `submit` of the executor that it was given, so an executor can receive first and take a
thread when there is something to do: which is what this does, and the only place that knows gRPC's
inner parts. Where they are not what we know (`supported`), its ordinary way is taken.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import grpc

from firewall.serve.arrival import Arrivals
from firewall.serve.scheduling import interrupt_nobody
from firewall.serve.status import Status
from firewall.serve.workers import Handle, Workers

log = logging.getLogger(__name__)

#: What `submit` is given for a call, after the function that sets its context variables.
_HANDED = (
    "rpc_event",
    "state",
    "behavior",
    "argument_thunk",
    "request_deserializer",
    "response_serializer",
)
_RECEIVING = "receive_message"
_NOT_TAKEN = Status(grpc.StatusCode.UNAVAILABLE, "the request could not be taken", ())


@cache
def _inner() -> tuple[Any, Any]:
    return importlib.import_module("grpc._server"), importlib.import_module("grpc._cython.cygrpc")


def supported() -> bool:
    """Whether gRPC's inner parts are those that this was written for."""
    try:
        server, cygrpc = _inner()
        handed = tuple(inspect.signature(server._unary_response_in_pool).parameters)
        status = tuple(inspect.signature(server._status).parameters)
        ends = tuple(inspect.signature(server._possibly_finish_call).parameters)
        context = tuple(inspect.signature(server._Context).parameters)
        state = vars(server._RPCState())
        return (
            handed == _HANDED
            and status == ("rpc_event", "state", "serialized_response")
            and ends == ("state", "token")
            and context == ("rpc_event", "state", "request_deserializer")
            and {"condition", "due", "client", "code", "details", "trailing_metadata"} <= set(state)
            and callable(cygrpc.ReceiveMessageOperation)
            and callable(server._is_rpc_state_active)
        )
    except Exception:
        return False


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


class Exchange:
    """One call: its message is received once, and it is ended once."""

    __slots__ = ("_direct", "_event", "_over", "_state", "context", "handle", "method", "steps")

    def __init__(self, direct: Direct, method: Method, event: Any, state: Any) -> None:
        self._direct, self._event, self._state = direct, event, state
        self._over = False
        self.method = method
        self.handle = Handle()
        #: The method's own: what has begun, and waits for the message.
        self.steps: Any = None
        #: As gRPC gives it to a handler.
        self.context: grpc.ServicerContext = _inner()[0]._Context(event, state, None)

    def receive(self) -> bool:
        """Have the message received; False when nobody is there any more."""
        server, cygrpc = _inner()
        state = self._state
        with state.condition:
            if not server._is_rpc_state_active(state):
                return False
            # An operation is a call's own: it holds what was received.
            operations = (cygrpc.ReceiveMessageOperation(0),)
            self._event.call.start_server_batch(operations, self._received)
            state.due.add(_RECEIVING)
            return True

    def _received(self, event: Any) -> Any:
        """In gRPC's own thread, which must not be stopped by anything raised here."""
        message: bytes | None = event.batch_operations[0].message()
        with self._state.condition:
            over = _inner()[0]._possibly_finish_call(self._state, _RECEIVING)
        self._direct.arrived(self, message)
        return over

    def end(self, outcome: bytes | Status) -> None:
        """Answer it, or say why not; once. Who has gone away is sent nothing."""
        if self._over:
            return
        self._over = True
        state, answer = self._state, None
        try:
            if isinstance(outcome, Status):
                state.trailing_metadata = outcome.trailing_metadata
                state.code = outcome.code
                state.details = outcome.details.encode(errors="replace")
            else:
                answer = outcome
            _inner()[0]._status(self._event, state, answer)
        except Exception:
            # As when the server has been shut down meanwhile.
            log.exception("a call could not be ended")
        finally:
            self._direct.ended(self)


@dataclass(frozen=True)
class Method:
    """A handler of calls, in gRPC's way and in ours.

    Attributes:
        ordinary: gRPC's: the requests, of which there is one, and the context, to the answer.
        begun: ours: whether the message is to be received; if not, it has ended the exchange. Must
            not wait.
        arrived: ours: told the message, None when there is none; ends the exchange, sooner or
            later, in another thread.
        waits: whether a call waits for room to begin.

    """

    ordinary: Callable[[Iterator[bytes], grpc.ServicerContext], bytes]
    begun: Callable[[Exchange], bool]
    arrived: Callable[[Exchange, bytes | None], None]
    waits: bool = True

    def __call__(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """As gRPC calls a handler."""
        return self.ordinary(requests, context)


class Direct:
    """An executor for `grpc.server` which receives the messages of `Method`s itself.

    Everything else it is handed goes to the workers.
    """

    def __init__(
        self,
        workers: Workers,
        arrivals: Arrivals,
        *,
        most: int,
        patience: Callable[[], float],
    ) -> None:
        """Begin nothing.

        Args:
            workers: for all other calls.
            arrivals: looks after those whose message does not come.
            most: calls that are received or answered at a time: each may hold a message.
            patience: seconds for which one may be received, as things are now.

        """
        self._workers, self._arrivals = workers, arrivals
        self._most, self._patience = most, patience
        self._lock = threading.Lock()
        self._busy = 0
        self._known = False
        self._here = threading.local()
        self._waiting: deque[Exchange] = deque()

    @property
    def waiting(self) -> int:
        """Calls that nothing has been received of, since as many as may be are being answered."""
        return len(self._waiting) + self._workers.waiting

    @property
    def busy(self) -> int:
        """Calls that are received or answered."""
        return self._busy

    def submit(self, run: Callable[..., Any], *arguments: Any, **options: Any) -> Handle:
        """What gRPC asks of an executor: begin a call.

        Raises:
            RuntimeError: the pool is shut down.

        """
        if not self._known:
            # Of gRPC's thread, in which this is.
            self._known = True
            interrupt_nobody()
        if len(arguments) == 1 + len(_HANDED) and isinstance(arguments[3], Method):
            return self._begin(Exchange(self, arguments[3], arguments[1], arguments[2]))
        return self._workers.submit(run, *arguments, **options)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As the workers'."""
        self._workers.shutdown(wait, cancel_futures=cancel_futures)

    def _begin(self, exchange: Exchange) -> Handle:
        with self._lock:
            room = self._busy < self._most or not exchange.method.waits
            if room:
                self._busy += 1
            else:
                self._waiting.append(exchange)
        if room:
            self._receive(exchange)
        return exchange.handle

    def _receive(self, exchange: Exchange) -> None:
        """In gRPC's thread, which nothing may stop, or in that of the call before it."""
        try:
            if not exchange.method.begun(exchange):
                return
            self._arrivals.expect(id(exchange), exchange.context, self._patience)
            there = exchange.receive()
        except Exception:
            log.exception("a call could not be received")
            self._fail(exchange)
            return
        if not there:
            self.arrived(exchange, None)

    def _fail(self, exchange: Exchange) -> None:
        self._arrivals.came(id(exchange))
        try:
            if exchange.steps is not None:
                exchange.steps.close()
        except Exception:
            log.exception("a call could not be taken back")
        exchange.end(_NOT_TAKEN)

    def arrived(self, exchange: Exchange, message: bytes | None) -> None:
        """Told by an exchange. Raises nothing."""
        self._arrivals.came(id(exchange))
        try:
            exchange.method.arrived(exchange, message)
        except Exception as error:
            # A pool that is shut down has no thread to give.
            log.warning("a message could not be handed on: %s", error)
            self._fail(exchange)

    def ended(self, exchange: Exchange) -> None:
        """Told by an exchange: the next one has its place."""
        exchange.handle.over()
        with self._lock:
            self._busy -= 1
        if getattr(self._here, "receiving", False):
            # One that ended as it began: whoever began it goes on with the next.
            return
        self._here.receiving = True
        try:
            while True:
                with self._lock:
                    if not self._waiting or self._busy >= self._most:
                        return
                    following = self._waiting.popleft()
                    self._busy += 1
                self._receive(following)
        finally:
            self._here.receiving = False
