"""Our methods over our own transport: from a call's headers to the thread that answers it.

Everything here runs in the listener's thread unless it says otherwise. A small request to a quick
guard never leaves it; what takes longer, or waits for somebody, goes to a thread of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import grpc

from firewall.errors import InvalidInput, NotReady
from firewall.http2.frames import ErrorCode
from firewall.serve.boundary import Boundary, RawMethod
from firewall.serve.crew import Crew
from firewall.serve.exchange import Arrived, Exchange
from firewall.serve.gate import Gate, Route
from firewall.serve.grpc_wire import ANSWER_HEAD, Head, bad_trailers
from firewall.serve.link import Link
from firewall.serve.staged import Given, Steps, finish
from firewall.serve.status import Status
from firewall.serve.stock import Stock
from firewall.serve.workers import Workers

log = logging.getLogger(__name__)

#: Bytes of a message whose request may share a thread with others.
_SMALL = 64 << 10


class Front:
    """Has every call that begins answered, or ends it."""

    def __init__(
        self,
        methods: Mapping[str, RawMethod],
        boundary: Boundary,
        gate: Gate,
        crew: Crew,
        workers: Workers,
        stock: Stock,
        most: int,
    ) -> None:
        """Nothing has begun.

        Args:
            methods: ours, by path.
            boundary: of them.
            gate: lets so many begin at a time.
            crew: answers small requests in this thread.
            workers: threads for all others.
            stock: gRPC's own services.
            most: bytes of a message.

        """
        self._boundary, self._gate, self._crew = boundary, gate, crew
        self._workers, self._stock, self._most = workers, stock, most
        self._routes = {path: self._route(path, raw) for path, raw in methods.items()}

    def begin(self, link: Link, stream: int, head: Head) -> None:
        """A call has begun."""
        if head.malformed or head.instead or head.problem is not None:
            self._wrong(link, stream, head)
            return
        route = self._routes.get(head.path)
        if route is None and not self._stock.knows(head.path):
            text = f"{head.path[:128]}: this server has no such method"
            self._say(link, stream, grpc.StatusCode.UNIMPLEMENTED, text)
            return
        exchange = Exchange(link, stream, head, self._most if route else self._stock.most)
        link.hold(exchange)
        if route is None:
            self._stock.begin(exchange)
        elif self._boundary.overfull():
            service, _, method = head.path[1:].partition("/")
            exchange.end(self._boundary.turn_away(service, method, exchange))
        else:
            self._gate.enter(exchange, route)

    def _wrong(self, link: Link, stream: int, head: Head) -> None:
        if head.malformed:
            with link.lock:
                link.machine.reset(stream, ErrorCode.PROTOCOL_ERROR)
        elif head.instead:
            with link.lock:
                link.machine.finish(stream, head.instead)
        elif head.problem is not None:
            text = str(InvalidInput(*head.problem))
            self._say(link, stream, grpc.StatusCode.INVALID_ARGUMENT, text)

    def _say(self, link: Link, stream: int, code: grpc.StatusCode, text: str) -> None:
        with link.lock:
            link.machine.finish(stream, ANSWER_HEAD + bad_trailers(code, text, ()))

    def _route(self, path: str, raw: RawMethod) -> Route:
        service, _, method = path[1:].partition("/")

        def begun(exchange: Exchange) -> bool:
            """Who asks, and whether it may, is known before anything is received."""
            answer = self._boundary.answering(service, method, raw, _RECEIVED, exchange)
            steps = self._ending(exchange, answer)
            try:
                next(steps)
            except StopIteration:
                return False
            exchange.steps = steps
            return True

        def arrived(exchange: Exchange, came: Arrived) -> None:
            steps, exchange.steps = exchange.steps, None
            if came is None:
                came = InvalidInput("message", "is missing; expected one")
            if isinstance(came, Exception):
                # Nothing is computed, so it may be told wherever this is.
                finish(steps, Given(came))
            elif raw.steps is not None and len(came) <= _SMALL:
                self._crew.give(steps, came)
            else:
                self._hand_over(steps, came)

        return Route(begun, arrived)

    def _hand_over(self, steps: Steps[None], message: bytes) -> None:
        try:
            self._workers.submit(finish, steps, Given(message))
        except RuntimeError as error:
            # The pool is shut down, or the system has no thread to give.
            log.warning("a request could not be handed on: %s", error)
            finish(steps, Given(NotReady("no thread is to be had")))

    def _ending(self, exchange: Exchange, steps: Steps[bytes | Status]) -> Steps[None]:
        """The exchange has an end, whatever happens. In any thread."""
        outcome: bytes | Status | None = None
        try:
            outcome = yield from steps
        except Exception as error:
            outcome = self._boundary.status(error, "")
        finally:
            if outcome is None:
                outcome = self._boundary.status(NotReady("the server is shutting down"), "")
            try:
                exchange.end(outcome)
            finally:
                self._gate.ended()


#: What a call waits for at first: the gate gives it.
_RECEIVED = Given(NotReady("the message is received elsewhere"))
