"""A server's side of one connection, without its socket."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from firewall.http2 import frames
from firewall.http2.frames import ErrorCode, frame, number
from firewall.http2.headers import BadBlock, Fields, HeaderReader

Meaning = TypeVar("Meaning")

#: CONTINUATION frames of one block.
_CONTINUED = 16
#: Frames that cost us and bring nothing (resets, pings, settings, what is for closed streams) that
#: a client may send at once, and more for every second.
_SPARE, _SPARE_A_SECOND = 2000.0, 200.0
#: Bytes of a frame that is worth its trouble, unless it is a stream's last.
_SCRAP = 64
#: Streams of which that is remembered.
_EARLY = 1024
#: A table as it is at first, and the field that makes it empty.
_TABLE, _NO_TABLE = 4096, b"\x20"
#: Headers may be so many times what is asked for before the connection ends, and with it the calls
#: of everybody who shares it.
_INDULGENCE = 4
_OPENINGS = (b"GET ", b"POST", b"HEAD", b"PUT ", b"DELE", b"OPTI", b"PATC", b"CONN", b"TRAC")
_NOT_HTTP2 = b"This port speaks gRPC, which is HTTP/2.\n"
_HTTP1 = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n"


@dataclass(frozen=True)
class Bounds:
    """What a client may make us hold.

    Attributes:
        streams: that are open at a time.
        stream_window: bytes of a stream before more is granted.
        window: bytes of all streams that are on their way to us.
        headers: bytes of a block, and of the fields in it, that are asked for; four times as many
            end the connection.
        unsent: bytes of answers that wait for a client to take them; then it may begin no more.

    """

    streams: int = 256
    stream_window: int = 1 << 16
    window: int = 1 << 24
    headers: int = 1 << 14
    unsent: int = 8 << 20


class Began(NamedTuple, Generic[Meaning]):
    """A stream, with what its headers mean."""

    stream: int
    head: Meaning
    ended: bool


class Came(NamedTuple):
    """Bytes of a stream; `ended` with its last."""

    stream: int
    data: bytes
    ended: bool


class Gone(NamedTuple):
    """The client takes no interest in a stream any more."""

    stream: int


class _Broken(Exception):
    """The connection ends."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


@dataclass(slots=True)
class _Stream:
    #: Bytes that the client takes, and that it may still send.
    window: int
    credit: int
    #: Whether the client has sent everything.
    ended: bool = False
    #: What it did not take yet: bytes of DATA, and then what ends the stream.
    unsent: deque[bytes] = field(default_factory=deque)
    unsent_size: int = 0
    trailers: bytes | None = None


class Connection(Generic[Meaning]):
    """Takes what a client sent, and has what is to be sent to it. Not for several threads at once.

    Whatever a client sends, nothing is raised: a connection that cannot go on is `closing`, and
    what is still to be sent says why.
    """

    def __init__(
        self,
        interpret: Callable[[Fields], Meaning],
        bounds: Bounds | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin.

        Args:
            interpret: what the fields of a request mean; raises nothing.
            bounds: of what a client may do.
            clock: seconds.

        """
        self._bounds = bounds or Bounds()
        self._clock = clock
        self._headers = HeaderReader(interpret, _INDULGENCE * self._bounds.headers)
        self._rest = b""
        self._begun = False
        #: The first frame of a client is SETTINGS.
        self._settled = False
        self._streams: dict[int, _Stream] = {}
        self._highest = 0
        self._block: tuple[int, bool, list[bytes]] | None = None
        self._credit = self._bounds.window
        self._owed = 0
        self._window = frames.WINDOW
        self._stream_window = frames.WINDOW
        self._frame_size = frames.FRAME_SIZE
        self._unsent = 0
        #: Whether more of what waits may go now.
        self._widened = False
        #: In front of the next header block.
        self._resized = b""
        self._spare, self._spared = _SPARE, clock()
        self._leaving = False
        #: Whether it is over once what is left has been sent.
        self.closing = False
        #: Streams that were answered before the client had sent everything: what it had sent by
        #: then may still come, as much as it was granted.
        self._early: dict[int, int] = {}
        self._out: list[bytes] = []

    def _greeting(self) -> list[bytes]:
        ours = {
            frames.MAX_CONCURRENT_STREAMS: self._bounds.streams,
            frames.INITIAL_WINDOW_SIZE: self._bounds.stream_window,
            frames.MAX_HEADER_LIST_SIZE: self._bounds.headers,
        }
        said = [frames.settings(ours)]
        more = self._bounds.window - frames.WINDOW
        if more > 0:
            said.append(frame(frames.WINDOW_UPDATE, 0, 0, number(more)))
        return said

    @property
    def open(self) -> int:
        """Streams that have not ended."""
        return len(self._streams)

    @property
    def settled(self) -> bool:
        """Whether the client has shown that it speaks HTTP/2."""
        return self._settled

    # --- what comes ---------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Began[Meaning] | Came | Gone]:
        """Take what the client sent; returns what it means."""
        events: list[Began[Meaning] | Came | Gone] = []
        if self.closing:
            return events
        if self._rest:
            data = self._rest + data
        at = 0
        try:
            if not self._begun:
                at = self._begin(data)
            if self._begun:
                at = self._frames(data, at, events)
        except _Broken as error:
            self._close(error.code, error.text)
            return events
        self._rest = data[at:]
        if self._widened:
            # Once for all that was read.
            self._widened = False
            if self._unsent:
                for number_, one in list(self._streams.items()):
                    self._send(number_, one)
        if self._owed * 2 >= self._bounds.window:
            self._out.append(frame(frames.WINDOW_UPDATE, 0, 0, number(self._owed)))
            self._credit += self._owed
            self._owed = 0
        return events

    def _begin(self, data: bytes) -> int:
        expected = frames.PREFACE
        if data.startswith(expected):
            self._begun = True
            self._out += self._greeting()
            return len(expected)
        if not expected.startswith(data):
            if data[:4] in _OPENINGS:
                # Somebody with a browser or curl: told in a way that they can read.
                length = b"Content-Length: %d\r\n\r\n" % len(_NOT_HTTP2)
                self._out.append(_HTTP1 + length + _NOT_HTTP2)
                self.closing = True
            else:
                raise _Broken(ErrorCode.PROTOCOL_ERROR, "not HTTP/2")
        return 0

    def _frames(self, data: bytes, at: int, events: list[Began[Meaning] | Came | Gone]) -> int:
        """Every frame that is there whole; returns where the next one begins."""
        end = len(data)
        while end - at >= frames.HEAD:
            size = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            if size > frames.FRAME_SIZE:
                raise _Broken(ErrorCode.FRAME_SIZE_ERROR, "a frame is too long")
            start = at + frames.HEAD
            if end - start < size:
                break
            kind, flags = data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : start], "big") & frames.MOST_WINDOW
            at = start + size
            payload = data[start:at]
            if self._block is not None and kind != frames.CONTINUATION:
                raise _Broken(ErrorCode.PROTOCOL_ERROR, "a header block is interrupted")
            if not self._settled:
                if kind != frames.SETTINGS or flags & frames.ACK:
                    raise _Broken(ErrorCode.PROTOCOL_ERROR, "SETTINGS come first")
                self._settled = True
            if kind == frames.DATA:
                self._data(stream, flags, payload, events)
            elif kind == frames.HEADERS:
                self._header(stream, flags, payload, events)
            else:
                self._other(kind, stream, flags, payload, events)
            if self.closing:
                break
        return at

    def _data(
        self, stream: int, flags: int, data: bytes, events: list[Began[Meaning] | Came | Gone]
    ) -> None:
        size = len(data)
        self._credit -= size
        self._owed += size
        if self._credit < 0:
            raise _Broken(ErrorCode.FLOW_CONTROL_ERROR, "more than the connection's window")
        one = self._streams.get(stream)
        if one is None:
            left = self._early.get(stream)
            if left is None or not 0 < size <= left:
                self._for_closed(stream)
            else:
                self._early[stream] = left - size
            return
        if one.ended:
            raise _Broken(ErrorCode.STREAM_CLOSED, "data after the end of a stream")
        one.credit -= size
        if one.credit < 0:
            raise _Broken(ErrorCode.FLOW_CONTROL_ERROR, "more than the stream's window")
        if flags & frames.PADDED:
            data = _unpadded(data)
        ended = bool(flags & frames.END_STREAM)
        one.ended = ended
        if len(data) < _SCRAP and not ended:
            self._glitch()
            if not data:
                return
        events.append(Came(stream, data, ended))

    def _header(
        self, stream: int, flags: int, data: bytes, events: list[Began[Meaning] | Came | Gone]
    ) -> None:
        if not stream & 1:
            raise _Broken(ErrorCode.PROTOCOL_ERROR, "a client's streams are odd")
        if flags & frames.PADDED:
            data = _unpadded(data)
        if flags & frames.PRIORITISED:
            if len(data) < 5:
                raise _Broken(ErrorCode.FRAME_SIZE_ERROR, "a priority is five bytes")
            data = data[5:]
        ended = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._block_read(stream, ended, data, events)
        else:
            self._block = (stream, ended, [data])

    def _continued(
        self, stream: int, flags: int, data: bytes, events: list[Began[Meaning] | Came | Gone]
    ) -> None:
        if self._block is None or self._block[0] != stream:
            raise _Broken(ErrorCode.PROTOCOL_ERROR, "a continuation of nothing")
        _, ended, parts = self._block
        parts.append(data)
        if len(parts) > _CONTINUED or sum(map(len, parts)) > (_INDULGENCE * self._bounds.headers):
            raise _Broken(ErrorCode.ENHANCE_YOUR_CALM, "too many headers")
        if flags & frames.END_HEADERS:
            self._block = None
            self._block_read(stream, ended, b"".join(parts), events)

    def _block_read(
        self, stream: int, ended: bool, block: bytes, events: list[Began[Meaning] | Came | Gone]
    ) -> None:
        # Also of a stream that is refused: the tables go on.
        try:
            head = self._headers.read(block)
        except BadBlock as error:
            raise _Broken(error.code, str(error)) from error
        if stream > self._highest:
            self._highest = stream
            if self._leaving or len(self._streams) >= self._bounds.streams:
                self._refuse(stream)
            elif self._unsent > self._bounds.unsent:
                # Who does not take answers gets no more of them.
                self._refuse(stream)
            else:
                self._streams[stream] = _Stream(
                    self._stream_window, self._bounds.stream_window, ended
                )
                events.append(Began(stream, head, ended))
            return
        one = self._streams.get(stream)
        if one is None:
            if self._early.pop(stream, None) is None:
                self._glitch()
        elif one.ended or not ended:
            raise _Broken(ErrorCode.PROTOCOL_ERROR, "headers within a stream, or after its end")
        else:
            one.ended = True
            events.append(Came(stream, b"", True))

    def _other(
        self,
        kind: int,
        stream: int,
        flags: int,
        data: bytes,
        events: list[Began[Meaning] | Came | Gone],
    ) -> None:
        if kind == frames.WINDOW_UPDATE:
            self._widen(stream, data)
        elif kind == frames.SETTINGS:
            self._settings(stream, flags, data)
        elif kind == frames.PING:
            _expect(stream == 0, ErrorCode.PROTOCOL_ERROR, "a ping of a stream")
            _expect(len(data) == 8, ErrorCode.FRAME_SIZE_ERROR, "a ping is eight bytes")
            if not flags & frames.ACK:
                self._glitch()
                self._out.append(frame(frames.PING, frames.ACK, 0, data))
        elif kind == frames.RST_STREAM:
            _expect(len(data) == 4, ErrorCode.FRAME_SIZE_ERROR, "a reset is four bytes")
            if stream in self._streams:
                self._forget(stream)
                events.append(Gone(stream))
                self._glitch()
            elif self._early.pop(stream, None) is None:
                self._for_closed(stream)
        elif kind == frames.CONTINUATION:
            self._continued(stream, flags, data, events)
        elif kind == frames.GOAWAY:
            _expect(stream == 0, ErrorCode.PROTOCOL_ERROR, "GOAWAY of a stream")
            _expect(len(data) >= 8, ErrorCode.FRAME_SIZE_ERROR, "GOAWAY is eight bytes at least")
        elif kind == frames.PUSH_PROMISE:
            raise _Broken(ErrorCode.PROTOCOL_ERROR, "clients push nothing")
        else:
            # PRIORITY, which nobody follows any more, and what is not known.
            self._glitch()

    def _settings(self, stream: int, flags: int, data: bytes) -> None:
        _expect(stream == 0, ErrorCode.PROTOCOL_ERROR, "settings of a stream")
        if flags & frames.ACK:
            _expect(not data, ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement holds nothing")
            return
        _expect(len(data) % 6 == 0, ErrorCode.FRAME_SIZE_ERROR, "a setting is six bytes")
        self._glitch()
        window = self._stream_window
        for at in range(0, len(data), 6):
            key = int.from_bytes(data[at : at + 2], "big")
            value = int.from_bytes(data[at + 2 : at + 6], "big")
            if key == frames.INITIAL_WINDOW_SIZE:
                _expect_window(value)
                window = value
            elif key == frames.HEADER_TABLE_SIZE:
                # We have no table; but a client that allows less is to be told so (RFC 7541, 4.2).
                if value < _TABLE:
                    self._resized = _NO_TABLE
            elif key == frames.MAX_FRAME_SIZE:
                _expect(
                    frames.FRAME_SIZE <= value < 1 << 24,
                    ErrorCode.PROTOCOL_ERROR,
                    "no size of a frame",
                )
                self._frame_size = value
            elif key == frames.ENABLE_PUSH:
                _expect(value <= 1, ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")
        self._out.append(frame(frames.SETTINGS, frames.ACK, 0))
        more, self._stream_window = window - self._stream_window, window
        if not more:
            return
        # Once, however often a frame says it.
        for one in self._streams.values():
            one.window += more
            _expect_window(one.window)
        self._widened = True

    def _widen(self, stream: int, data: bytes) -> None:
        _expect(len(data) == 4, ErrorCode.FRAME_SIZE_ERROR, "a window update is four bytes")
        more = int.from_bytes(data, "big") & frames.MOST_WINDOW
        _expect(more > 0, ErrorCode.PROTOCOL_ERROR, "a window update of nothing")
        if stream == 0:
            self._window += more
            _expect_window(self._window)
            self._widened = True
            return
        one = self._streams.get(stream)
        if one is None:
            # As a rule it crossed our answer on its way.
            _expect(stream <= self._highest, ErrorCode.PROTOCOL_ERROR, "a stream never begun")
            return
        one.window += more
        _expect_window(one.window)
        self._send(stream, one)

    def _for_closed(self, stream: int) -> None:
        """A frame of a stream that is no more: it may have crossed our end of it."""
        _expect(0 < stream <= self._highest, ErrorCode.PROTOCOL_ERROR, "a stream never begun")
        self._glitch()

    def _refuse(self, stream: int) -> None:
        self._glitch()
        self._out.append(frame(frames.RST_STREAM, 0, stream, number(ErrorCode.REFUSED_STREAM)))

    def _glitch(self) -> None:
        """What may happen now and then, and is an attack when it happens all the time."""
        self._spare -= 1
        if self._spare < 0:
            now = self._clock()
            more = (now - self._spared) * _SPARE_A_SECOND
            self._spare, self._spared = min(_SPARE, self._spare + more), now
            if self._spare < 0:
                raise _Broken(ErrorCode.ENHANCE_YOUR_CALM, "too much that leads to nothing")

    # --- what goes ----------------------------------------------------------------------------

    def respond(self, stream: int, head: bytes, body: bytes, trailers: bytes) -> None:
        """The whole answer of a stream.

        Args:
            stream: its number; of one that is gone nothing is sent.
            head: header block.
            body: all data.
            trailers: header block that ends it.

        """
        one = self._streams.get(stream)
        if one is None:
            return
        size = len(body)
        if self._resized:
            head, self._resized = self._resized + head, b""
        whole = max(size, len(head), len(trailers)) <= self._frame_size
        if whole and size <= one.window and size <= self._window:
            self._window -= size
            key = stream.to_bytes(4, "big")
            self._out += (
                b"%b\x01\x04%b" % (len(head).to_bytes(3, "big"), key),
                head,
                b"%b\x00\x00%b" % (size.to_bytes(3, "big"), key),
                body,
                b"%b\x01\x05%b" % (len(trailers).to_bytes(3, "big"), key),
                trailers,
            )
            self._over(stream, one)
        else:
            self.start(stream, head)
            self.data(stream, body)
            self.finish(stream, trailers)

    def start(self, stream: int, head: bytes) -> None:
        """The header block of an answer, which goes on."""
        if stream in self._streams:
            self._headers_out(stream, head, 0)

    def data(self, stream: int, data: bytes) -> int:
        """More of an answer; returns the bytes of it that the client did not take yet."""
        one = self._streams.get(stream)
        if one is None:
            return 0
        one.unsent.append(data)
        one.unsent_size += len(data)
        self._unsent += len(data)
        self._send(stream, one)
        return one.unsent_size

    def finish(self, stream: int, trailers: bytes) -> None:
        """End an answer with a header block; without `start` before, it is the whole answer."""
        one = self._streams.get(stream)
        if one is not None:
            one.trailers = trailers
            self._send(stream, one)

    def grant(self, stream: int, size: int) -> None:
        """Have the client send so many bytes of a stream that are still to come."""
        one = self._streams.get(stream)
        if one is None or one.ended or one.credit >= size:
            return
        # Somewhat more: padding counts.
        more = min(size - one.credit + frames.FRAME_SIZE, frames.MOST_WINDOW - one.credit)
        one.credit += more
        self._out.append(frame(frames.WINDOW_UPDATE, 0, stream, number(more)))

    def reset(self, stream: int, code: ErrorCode) -> None:
        """End a stream without an answer."""
        if stream in self._streams:
            self._forget(stream)
            self._out.append(frame(frames.RST_STREAM, 0, stream, number(code)))

    def leave(self) -> None:
        """Take no more streams, and say so; those that are open go on."""
        if not self._leaving and not self.closing:
            self._leaving = True
            self._goodbye(ErrorCode.NO_ERROR, "")

    def close(self) -> None:
        """End it, whatever is open."""
        if not self.closing:
            self._close(ErrorCode.NO_ERROR, "")

    def take(self) -> bytes:
        """What is to be sent, once."""
        out = self._out
        if not out:
            return b""
        self._out = []
        return b"".join(out)

    @property
    def unsent(self) -> int:
        """Bytes of answers that the client does not take yet."""
        return self._unsent

    @property
    def has_output(self) -> bool:
        """Whether there is something to take."""
        return bool(self._out)

    def _send(self, stream: int, one: _Stream) -> None:
        """As much of what waits as the client takes."""
        while one.unsent:
            first = one.unsent[0]
            size = min(len(first), one.window, self._window, self._frame_size)
            if size <= 0 < len(first):
                return
            one.window -= size
            self._window -= size
            one.unsent_size -= size
            self._unsent -= size
            self._out.append(frame(frames.DATA, 0, stream, first[:size]))
            if size == len(first):
                one.unsent.popleft()
            else:
                one.unsent[0] = first[size:]
        if one.trailers is not None:
            self._headers_out(stream, one.trailers, frames.END_STREAM)
            self._over(stream, one)

    def _headers_out(self, stream: int, block: bytes, flags: int) -> None:
        if self._resized:
            block, self._resized = self._resized + block, b""
        kind, most = frames.HEADERS, self._frame_size
        while len(block) > most:
            self._out.append(frame(kind, flags, stream, block[:most]))
            kind, flags, block = frames.CONTINUATION, 0, block[most:]
        self._out.append(frame(kind, flags | frames.END_HEADERS, stream, block))

    def _over(self, stream: int, one: _Stream) -> None:
        """Answered in full: what the client still sends of it is of no use."""
        if not one.ended:
            self._out.append(frame(frames.RST_STREAM, 0, stream, number(ErrorCode.NO_ERROR)))
            if len(self._early) >= _EARLY:
                del self._early[next(iter(self._early))]
            self._early[stream] = one.credit
        self._forget(stream)
        # Who asks and is answered may do more that leads to nothing.
        if self._spare < _SPARE:
            self._spare += 1

    def _forget(self, stream: int) -> None:
        one = self._streams.pop(stream)
        self._unsent -= one.unsent_size

    def _close(self, code: ErrorCode, text: str) -> None:
        self._goodbye(code, text)
        self.closing = True
        self._rest = b""

    def _goodbye(self, code: ErrorCode, text: str) -> None:
        said = number(self._highest) + number(code) + text.encode()
        self._out.append(frame(frames.GOAWAY, 0, 0, said))


def _unpadded(data: bytes) -> bytes:
    if not data or data[0] >= len(data):
        raise _Broken(ErrorCode.PROTOCOL_ERROR, "more padding than there is")
    return data[1 : len(data) - data[0]]


def _expect_window(size: int) -> None:
    _expect(size <= frames.MOST_WINDOW, ErrorCode.FLOW_CONTROL_ERROR, "too large a window")


def _expect(holds: bool, code: ErrorCode, text: str) -> None:
    if not holds:
        raise _Broken(code, text)
