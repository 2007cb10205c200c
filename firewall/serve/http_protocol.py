"""Bounds on connections, headers and time of HTTP clients, around uvicorn's protocol.

uvicorn bounds none of: headers and trailers of a request, requests that are sent before earlier
ones are answered, the time of headers, the time in which an answer is read, and the connections of
one client.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from firewall.errors import Overloaded
from firewall.serve.admission import Admission, AdmissionController

#: Seconds in which the headers of a request must arrive, and the bytes that they may have.
HEADER_TIMEOUT, MAX_HEADER_BYTES = 20.0, 64 << 10
#: Header fields of a request, trailers included.
MAX_HEADER_FIELDS = 128
#: Requests of a connection that may wait for the answers of earlier ones.
MAX_PIPELINED = 16
#: Seconds for which a client may leave an answer unread.
READ_TIMEOUT = 20.0


class BoundedHttpProtocol(asyncio.Protocol):
    """Closes connections that are over a limit, and leaves the rest to uvicorn.

    uvicorn makes one for each connection.
    """

    def __init__(self, connections: AdmissionController, **arguments: Any) -> None:
        """Wrap uvicorn's protocol.

        Args:
            connections: admits them, shared by all connections of a port.
            arguments: of uvicorn's protocol.

        """
        self._connections = connections
        self._inner = HttpToolsProtocol(**arguments)
        self._requests = _Requests()
        self._place: Admission | None = None
        self._transport: asyncio.Transport | None = None
        self._header_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the client, and expect the headers of its first request."""
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        try:
            self._place = self._connections.admit(peer[0] if isinstance(peer, tuple) else "socket")
        except Overloaded:
            self._transport.abort()
            return
        self._inner.connection_made(self._transport)
        self._header_timer = self._close_after(HEADER_TIMEOUT)

    def data_received(self, data: bytes) -> None:
        """Pass data on, unless it goes beyond a limit."""
        if self._place is None:
            return
        waiting = len(self._inner.pipeline)
        if not self._requests.feed(data) or waiting + self._requests.begun > MAX_PIPELINED:
            self._close()
            return
        self._inner.data_received(data)
        if not self._requests.headers_pending:
            self._stop_header_timer()
        elif self._header_timer is None:
            self._header_timer = self._close_after(HEADER_TIMEOUT)

    def eof_received(self) -> None:
        """Pass on that the client sends no more."""
        if self._place is not None:
            self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on that the connection has ended."""
        self._stop_header_timer()
        self._stop_read_timer()
        self._requests.close()
        if self._place is not None:
            self._place.release()
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass on that the client reads too slowly, and wait for it, but not for ever."""
        self._inner.pause_writing()
        self._read_timer = self._close_after(READ_TIMEOUT)

    def resume_writing(self) -> None:
        """Pass on that the client reads again."""
        self._stop_read_timer()
        self._inner.resume_writing()

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _close_after(self, seconds: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, self._close)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Requests:
    """Follows the requests of a connection with a parser of its own, before uvicorn sees them."""

    def __init__(self) -> None:
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        # As uvicorn's parser: both must agree on where a request ends.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._in_request = False
        self._fields = 0
        #: Bytes since the request began that are no body, less twice those that are: headers,
        #: trailers, and the frames of chunks that are too small.
        self._overhead = 0
        #: Whether headers are expected.
        self.headers_pending = True
        #: Requests that began in the latest data.
        self.begun = 0

    def feed(self, data: bytes) -> bool:
        """Read data; False where a request has gone beyond a limit."""
        if self._parser is None:
            return False
        self.headers_pending = self.headers_pending or not self._in_request
        self._overhead += len(data)
        self.begun = 0
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Refused by uvicorn.
            pass
        except httptools.HttpParserError:
            # Answered by uvicorn, once.
            self._parser = None
        return self._overhead <= MAX_HEADER_BYTES and self._fields <= MAX_HEADER_FIELDS

    def close(self) -> None:
        """Let go of the parser, which refers to this object."""
        self._parser = None

    # --- called by the parser

    def on_message_begin(self) -> None:
        self._in_request = self.headers_pending = True
        self._fields = self._overhead = 0
        self.begun += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1

    def on_headers_complete(self) -> None:
        self.headers_pending = False
        self._overhead = 0

    def on_body(self, body: bytes) -> None:
        self._overhead = max(0, self._overhead - 2 * len(body))

    def on_message_complete(self) -> None:
        self._in_request = False
