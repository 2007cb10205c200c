"""One connection of a client: its socket, its TLS, its calls."""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from firewall.http2.connection import Began, Bounds, Came, Connection
from firewall.http2.frames import ErrorCode
from firewall.serve.grpc_wire import Head, read_head
from firewall.serve.secure import Secure

if TYPE_CHECKING:
    from firewall.serve.exchange import Exchange

log = logging.getLogger(__name__)

#: Seconds for a client to say that it speaks HTTP/2, to read a goodbye, and to read anything.
SILENT, GOODBYE, STALLED = 20.0, 1.0, 30.0
#: Bytes that are read at a time.
_READ = 1 << 18
#: Bytes that wait for the client's socket before nothing more is read from it.
_FULL = 1 << 20


class Loop(Protocol):
    """What a link asks of the thread that it lives in."""

    @property
    def here(self) -> bool:
        """Whether this is that thread."""
        ...

    def wrote(self, link: Link) -> None:
        """Flush it at the end of this round. In that thread."""
        ...

    def soon(self, task: Callable[[], None]) -> None:
        """Do it in that thread."""
        ...

    def watch(self, link: Link, reads: bool, writes: bool) -> None:
        """What to look for at its socket. In that thread."""
        ...

    def look_after(self, link: Link) -> None:
        """It has an `end` now. In that thread."""
        ...

    def lost(self, link: Link) -> None:
        """It is closed. In that thread."""
        ...


class Link:
    """Lives in one thread, which reads; any thread may send."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        peer: str,
        secure: Secure | None,
        begin: Callable[[Link, int, Head], None],
        bounds: Bounds,
    ) -> None:
        """Begin.

        Args:
            loop: its thread.
            sock: connected, does not block.
            peer: as gRPC writes it.
            secure: its TLS, if any.
            begin: told of a call that has begun; has the link hold an exchange of it, or ends it.
            bounds: of what a client may do.

        """
        self._loop, self._sock, self._secure, self._begin = loop, sock, secure, begin
        self.peer = peer
        self.lock = threading.RLock()
        self.machine: Connection[Head] = Connection(read_head, bounds)
        self._exchanges: dict[int, Exchange] = {}
        self._left = bytearray()
        self._open = True
        #: Nothing more is sent, and what comes is of no interest.
        self._finishing = False
        self._watched = (True, False)
        #: When it began, when anything was sent that had to wait, and when it began to end.
        self._since = self._moved = time.monotonic()
        self._closing: float | None = None

    @property
    def auth(self) -> dict[str, list[bytes]]:
        """Of the client's certificate, as gRPC writes it."""
        return {} if self._secure is None else self._secure.auth

    def fileno(self) -> int:
        """Of its socket."""
        return self._sock.fileno()

    @property
    def end(self) -> float:
        """When it is to be dropped, on the monotonic clock, as things are."""
        if self._closing is not None:
            return self._closing + GOODBYE
        if not self.machine.settled:
            return self._since + SILENT
        return self._moved + STALLED if self._left else math.inf

    @property
    def drained(self) -> bool:
        """Whether the client has taken all that there is for it."""
        return not self.machine.unsent and not self._left and not self.machine.has_output

    # --- in its thread ------------------------------------------------------------------------

    def ready(self, reads: bool, writes: bool) -> None:
        """Its socket can be read, or written."""
        if writes:
            self.flush()
        if reads and self._open:
            self._read()

    def _read(self) -> None:
        try:
            data = self._sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop()
            return
        if self._finishing:
            return
        with self.lock:
            if self._secure is not None:
                # Not while another thread seals.
                data = self._secure.received(data)
            events = self.machine.receive(data)
        for event in events:
            stream = event.stream
            if isinstance(event, Began):
                self._begin(self, stream, event.head)
                if event.ended and (begun := self._exchanges.get(stream)) is not None:
                    begun.came(b"", True)
            elif (exchange := self._exchanges.get(stream)) is None:
                continue
            elif isinstance(event, Came):
                exchange.came(event.data, event.ended)
            else:
                # It may end in another thread meanwhile.
                self._exchanges.pop(stream, None)
                exchange.gone()
        self._loop.wrote(self)
        if self._secure is not None and self._secure.broken:
            # What TLS has to say of it, and nothing more.
            self.flush_now()
            self._finish()

    def hold(self, exchange: Exchange) -> None:
        """An exchange of its own, told what comes from now on."""
        self._exchanges[exchange.stream] = exchange

    def drop(self) -> None:
        """The connection is no more: whoever is being answered is told."""
        if not self._open:
            return
        self._open = False
        with self.lock:
            exchanges, self._exchanges = list(self._exchanges.values()), {}
            self.machine.close()
            self._left.clear()
        self._loop.lost(self)
        self._sock.close()
        for exchange in exchanges:
            exchange.gone()

    def leave(self) -> None:
        """Take no more calls; those that run go on."""
        with self.lock:
            self.machine.leave()
        self.flush()

    def close(self) -> None:
        """Say goodbye, whatever is open."""
        with self.lock:
            self.machine.close()
        self.flush()

    def _finish(self) -> None:
        """Nothing more goes; what still comes is thrown away, so that what went arrives."""
        if self._finishing or not self._open:
            return
        self._finishing = True
        if self._closing is None:
            self._closing = time.monotonic()
        self._loop.look_after(self)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        exchanges, self._exchanges = list(self._exchanges.values()), {}
        for exchange in exchanges:
            exchange.gone()

    def _look(self) -> None:
        """What to wait for at the socket, as things are."""
        if not self._open:
            return
        wanted = (len(self._left) < _FULL, bool(self._left))
        if wanted != self._watched:
            self._watched = wanted
            self._loop.watch(self, *wanted)

    # --- in any thread ------------------------------------------------------------------------

    def grant(self, stream: int, size: int) -> None:
        """So many bytes of a stream are wanted. Locked."""
        self.machine.grant(stream, size)

    def reset(self, stream: int) -> None:
        """End a stream without an answer. Locked."""
        self.machine.reset(stream, ErrorCode.CANCEL)
        self._exchanges.pop(stream, None)

    def ended(self, stream: int) -> None:
        """An exchange is over. Locked."""
        self._exchanges.pop(stream, None)

    def flush(self) -> None:
        """Send what there is: now, or at the end of the round in its own thread."""
        if self._loop.here:
            self._loop.wrote(self)
        elif self.machine.has_output:
            with self.lock:
                waits = self._send()
            if waits:
                self._loop.soon(self.flush)

    def flush_now(self) -> None:
        """In its thread, at the end of a round."""
        if not self._open:
            return
        with self.lock:
            self._send()
            closing, left = self.machine.closing, bool(self._left)
        if closing and self._closing is None:
            self._closing = time.monotonic()
        if closing and not left:
            self._finish()
        if closing or left:
            self._loop.look_after(self)
        self._look()

    def _send(self) -> bool:
        """As much as the socket takes; whether something is left, or it is over. Locked."""
        data = self.machine.take()
        if self._secure is not None:
            data = self._secure.sealed(data)
        waited = bool(self._left)
        if waited:
            self._left += data
            data = bytes(self._left)
            self._left.clear()
        if data and not self._finishing and self._open:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                # Read as the end of the connection soon.
                return True
            if sent < len(data):
                self._left += memoryview(data)[sent:]
                if sent or not waited:
                    self._moved = time.monotonic()
        return bool(self._left) or self.machine.closing
