"""Bounds on the headers of HTTP requests, around uvicorn's protocol, which has none."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Seconds in which the headers of a request must arrive, and the bytes that they may have.
HEADER_TIMEOUT, MAX_HEADER_BYTES = 20.0, 64 << 10


class BoundedHttpProtocol(asyncio.Protocol):
    """Closes connections whose headers are late or too large, and leaves the rest to uvicorn.

    uvicorn makes one for each connection.
    """

    def __init__(self, **arguments: Any) -> None:
        self._inner = HttpToolsProtocol(**arguments)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: Bytes since the latest request had its headers.
        self._header_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Expect the headers of the first request."""
        self._transport = cast(asyncio.Transport, transport)
        self._inner.connection_made(self._transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        """Pass data on, and see whether it has ended the headers of a request."""
        before = self._inner.cycle
        self._inner.data_received(data)
        cycle = self._inner.cycle
        if cycle is not before:
            self._header_bytes = 0
            self._stop_timer()
        elif cycle is None or cycle.response_complete:
            # Between two requests: these are headers.
            if self._timer is None:
                self._expect_headers()
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._close()

    def eof_received(self) -> None:
        """Pass on that the client sends no more."""
        self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on that the connection has ended."""
        self._stop_timer()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass on that the client reads too slowly."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that the client reads again."""
        self._inner.resume_writing()

    def _expect_headers(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(HEADER_TIMEOUT, self._close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
