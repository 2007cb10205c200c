"""One call over our own transport: its headers, its messages, its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from firewall.errors import Cancelled, InvalidInput, TooLarge, Unsupported
from firewall.serve.grpc_wire import (
    ANSWER_HEAD,
    PREFIX,
    Head,
    Metadata,
    bad_trailers,
    good_trailers,
    prefixed,
)
from firewall.serve.link import Link
from firewall.serve.status import Status

log = logging.getLogger(__name__)

#: A message; what is wrong with it; or None: there is none any more.
Arrived = bytes | Exception | None
#: Parts of a message that are kept as they came.
_PARTS = 64
Told = Callable[[Arrived], None]


class Exchange:
    """A call, as its methods see it; what gRPC calls a servicer's context as well.

    Messages are received when they are asked for, one at a time. Whatever comes before, or is too
    much for its stream's window, stays with the client.
    """

    __slots__ = (
        "_active", "_callbacks", "_chunks", "_deadline", "_ended", "_have", "_link", "_most",
        "_over", "_size", "_started", "_told", "_trailing", "head", "steps", "stream",
    )  # fmt: skip

    def __init__(self, link: Link, stream: int, head: Head, most: int) -> None:
        """Nothing is received yet.

        Args:
            link: over which it came.
            stream: its number there.
            head: its headers.
            most: bytes of a message.

        """
        self._link, self.stream, self.head, self._most = link, stream, head, most
        self._deadline = None if head.timeout is None else time.monotonic() + head.timeout
        self._active, self._over, self._started, self._ended = True, False, False, False
        self._callbacks: list[Callable[[], None]] = []
        self._chunks: list[bytes | bytearray] = []
        #: Bytes that are there, and of the next message, once its prefix has said so and is gone.
        self._have, self._size = 0, -1
        self._told: Told | None = None
        self._trailing: Metadata = ()
        #: A method's own: what has begun, and waits for the message.
        self.steps: Any = None

    # --- as a context -------------------------------------------------------------------------

    def peer(self) -> str:
        """Who asks, as gRPC writes it: `ipv4:127.0.0.1:5000`."""
        return self._link.peer

    def auth_context(self) -> dict[str, list[bytes]]:
        """Of the client's certificate, if it showed one."""
        return self._link.auth

    def invocation_metadata(self) -> Metadata:
        """The client's, in order."""
        return self.head.metadata

    def time_remaining(self) -> float | None:
        """Seconds that the client still gives it; None is for ever."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def is_active(self) -> bool:
        """Whether the client still waits."""
        return self._active

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Have something done when the client goes away; False when it already has."""
        with self._link.lock:
            if not self._active:
                return False
            self._callbacks.append(callback)
        return True

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """What goes with the status of an answer."""
        self._trailing = metadata

    def cancel(self) -> None:
        """End it without an answer."""
        with self._link.lock:
            self._link.reset(self.stream)
        self._link.flush()
        self.gone()

    # --- what comes ---------------------------------------------------------------------------

    def receive(self, told: Told) -> None:
        """Have the next message received.

        Args:
            told: called once with it, perhaps before this returns, in any thread.

        """
        with self._link.lock:
            arrived, there = self._next()
            if not there:
                self._told = told
                self._link.grant(self.stream, self._missing())
        if there:
            told(arrived)
        else:
            self._link.flush()

    def came(self, data: bytes, ended: bool) -> None:
        """Told by its connection: bytes, and whether they are the last."""
        with self._link.lock:
            self._ended = ended
            if data and not self._over:
                self._keep(data)
            told = self._told
            if told is None:
                return
            arrived, there = self._next()
            if there:
                self._told = None
            else:
                self._link.grant(self.stream, self._missing())
        if there:
            told(arrived)

    def gone(self) -> None:
        """Told by its connection: the client takes no interest any more, or is not there."""
        with self._link.lock:
            if not self._active:
                return
            self._active = False
            callbacks, self._callbacks = self._callbacks, []
            told, self._told = self._told, None
            self._chunks.clear()
        for callback in callbacks:
            try:
                callback()
            except Exception:
                log.exception("what was to be done when a client went away failed")
        if told is not None:
            told(Cancelled("the caller went away, or the message did not come in time"))

    def _next(self) -> tuple[Arrived, bool]:
        """The next message, and whether there is one or never will be. Locked."""
        if not self._active:
            return Cancelled("the caller went away, or the message did not come in time"), True
        if self._size < 0 and self._have >= PREFIX:
            first: bytes | bytearray = self._chunks[0]
            if len(first) < PREFIX:
                first = b"".join(self._chunks)
                self._chunks = [first]
            size = int.from_bytes(first[1:PREFIX], "big")
            if first[0] == 1:
                return Unsupported("a compressed message: send it as it is (identity)"), True
            if first[0]:
                return InvalidInput("message", "is not gRPC's: its first byte is not 0"), True
            if size > self._most:
                return TooLarge(f"message: {size} bytes; expected at most {self._most}"), True
            # Of the first part alone, so that the whole is put together in one step.
            self._chunks[0] = first[PREFIX:]
            self._have -= PREFIX
            self._size = size
        if 0 <= self._size <= self._have:
            return self._taken(), True
        if not self._ended:
            return None, False
        there = self._have if self._size < 0 else self._have + PREFIX
        if there:
            return InvalidInput("message", f"ends after {there} bytes of it"), True
        return None, True

    def _missing(self) -> int:
        """Bytes that are still to come, as far as that is known. Locked."""
        return (PREFIX if self._size < 0 else self._size) - self._have

    def _keep(self, data: bytes) -> None:
        """More of a message. Of many parts one is made: parts of a byte would each take fifty."""
        chunks = self._chunks
        self._have += len(data)
        if len(chunks) < _PARTS:
            chunks.append(data)
        elif isinstance(last := chunks[-1], bytearray):
            last += data
        else:
            self._chunks = [*chunks[: _PARTS - 1], bytearray(chunks[-1] + data)]

    def _taken(self) -> bytes:
        """The first message, of which all is there. Locked."""
        size, chunks = self._size, self._chunks
        whole = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        message, rest = bytes(whole), b""
        if self._have > size:
            message, rest = message[:size], message[size:]
        self._chunks = [rest] if rest else []
        self._have, self._size = len(rest), -1
        return message

    # --- what goes ----------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """One of several messages of an answer.

        Raises:
            Cancelled: the client has gone away, or does not take its answers.

        """
        with self._link.lock:
            if self._over or not self._active:
                raise Cancelled("the caller went away")
            if not self._started:
                self._started = True
                self._link.machine.start(self.stream, ANSWER_HEAD)
            unsent = self._link.machine.data(self.stream, prefixed(message))
        self._link.flush()
        if unsent > self._most:
            raise Cancelled("the caller does not take its answers")

    def end(self, outcome: bytes | Status | None) -> bool:
        """Answer it, say why not, or, after messages that were sent, say that there are no more;
        once. Who has gone away is sent nothing. False when it has ended before.
        """
        link = self._link
        with link.lock:
            if self._over:
                return False
            self._over = True
            if isinstance(outcome, bytes):
                link.machine.respond(
                    self.stream, ANSWER_HEAD, prefixed(outcome), good_trailers(self._trailing)
                )
            elif self._active:
                if outcome is None:
                    trailers = good_trailers(self._trailing)
                else:
                    trailers = bad_trailers(
                        outcome.code, outcome.details, outcome.trailing_metadata
                    )
                head = b"" if self._started else ANSWER_HEAD
                link.machine.finish(self.stream, head + trailers)
            link.ended(self.stream)
            self._chunks.clear()
            self._callbacks.clear()
        link.flush()
        return True
