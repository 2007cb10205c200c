"""HTTP/2 without sockets: frames in, frames out (RFC 9113)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import h2.config
import h2.connection
import h2.events
import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firewall.http2 import frames
from firewall.http2.connection import Began, Bounds, Came, Connection, Gone
from firewall.http2.frames import ErrorCode, frame, number
from firewall.http2.headers import HeaderReader, changes_table, literal

FIELDS = [
    (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a/B"), (b":authority", b"x"),
    (b"te", b"trailers"), (b"content-type", b"application/grpc"),
]  # fmt: skip
EMPTY = frames.settings({})
START = frames.PREFACE + EMPTY


class Peer:
    """A connection of ours, and what it has sent, frame by frame."""

    def __init__(self, bounds: Bounds | None = None, clock: Callable[[], float] = lambda: 0.0):
        self.encoder = hpack.Encoder()
        self.ours: Connection[list[tuple[bytes, bytes]]] = Connection(list, bounds, clock)

    def started(self) -> Peer:
        assert self.ours.receive(START) == []
        self.sent()
        return self

    def sent(self) -> list[tuple[int, int, int, bytes]]:
        return list(split(self.ours.take()))

    def block(self, *more: tuple[bytes, bytes]) -> bytes:
        return self.encoder.encode([*FIELDS, *more])

    def headers(self, stream: int, flags: int = frames.END_HEADERS) -> bytes:
        return frame(frames.HEADERS, flags, stream, self.block())

    def begin(self, stream: int = 1) -> Peer:
        [event] = self.ours.receive(self.headers(stream))
        assert isinstance(event, Began)
        return self

    def goodbye(self) -> tuple[int, str]:
        """Why the connection ended."""
        assert self.ours.closing
        [last] = [payload for kind, _, _, payload in self.sent() if kind == frames.GOAWAY]
        return int.from_bytes(last[4:8], "big"), last[8:].decode()


def split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    while data:
        size = int.from_bytes(data[:3], "big")
        yield data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]
        data = data[9 + size :]


# --- headers ---------------------------------------------------------------------------------


def test_a_block_that_is_the_same_is_read_once() -> None:
    read: list[Any] = []

    def interpret(fields: Any) -> object:
        read.append(fields)
        return object()

    reader = HeaderReader(interpret, 1 << 14)
    encoder = hpack.Encoder()
    first = reader.read(encoder.encode(FIELDS))
    again = encoder.encode(FIELDS)
    second = reader.read(again)
    assert reader.read(again) is second is not first
    assert len(read) == 2
    # An entry more moves all the others: what was remembered is no more.
    reader.read(encoder.encode([*FIELDS, (b"x", b"y")]))
    moved = reader.read(encoder.encode(FIELDS))
    assert moved is not second
    assert [dict(fields).get(b"x") for fields in read] == [None, None, b"y", None]
    assert all(list(fields)[: len(FIELDS)] == FIELDS for fields in read)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b":path", b"grpc-timeout", b"x-a", b"x-b", b"user-agent"]),
            st.sampled_from([b"/a", b"1S", b"2S", b"x" * 200, b""]),
            st.booleans(),
        ),
        max_size=6,
    ).flatmap(lambda one: st.lists(st.just(one) | st.just(one[:2]), min_size=1, max_size=6))
)
def test_what_is_remembered_is_what_would_be_read(blocks: list[Any]) -> None:
    """Whatever an encoder does with its table."""
    reader = HeaderReader(list, 1 << 14)
    encoder = hpack.Encoder()
    for one in blocks:
        fields = [hpack.NeverIndexedHeaderTuple(n, v) if s else (n, v) for n, v, s in one]
        block = encoder.encode(fields, huffman=len(one) % 2 == 0)
        assert reader.read(block) == [(n, v) for n, v, _ in one]


@pytest.mark.parametrize(
    ("block", "changes"),
    [
        (b"\x88", False),
        (b"\x82\x86\xbe", False),
        (literal(b"a", b"b"), False),
        (literal(b"a" * 300, b"b" * 5000), False),
        (b"\x10" + literal(b"a", b"b")[1:], False),
        (b"\x40\x01a\x01b", True),
        (b"\x20", True),
        # Broken: the reader decides.
        (b"\x00\x05a", True),
        (b"\xff\xff\xff\xff\xff\xff\xff", True),
    ],
)
def test_blocks_that_change_the_table(block: bytes, changes: bool) -> None:
    assert changes_table(block) is changes


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254, 255, 256, 20_000])
def test_literals_are_read_as_they_were_written(size: int) -> None:
    block = literal(b"x-long", b"v" * size) + b"\x88"
    assert hpack.Decoder(1 << 20).decode(block, raw=True) == [
        (b"x-long", b"v" * size), (b":status", b"200"),
    ]  # fmt: skip


# --- requests --------------------------------------------------------------------------------


def test_a_request_and_its_answer() -> None:
    peer = Peer().started()
    data = peer.headers(1) + frame(frames.DATA, frames.END_STREAM, 1, b"message")
    assert peer.ours.receive(data) == [
        Began(1, FIELDS, False), Came(1, b"message", True),
    ]  # fmt: skip
    peer.ours.respond(1, b"\x88", b"answer", literal(b"grpc-status", b"0"))
    assert peer.sent() == [
        (frames.HEADERS, frames.END_HEADERS, 1, b"\x88"),
        (frames.DATA, 0, 1, b"answer"),
        (
            frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1,
            literal(b"grpc-status", b"0"),
        ),
    ]  # fmt: skip
    assert peer.ours.open == 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_it_does_not_matter_how_bytes_come(data: st.DataObject) -> None:
    whole = START
    other = Peer()
    for stream in (1, 3, 5):
        whole += other.headers(stream) + frame(frames.DATA, 0, stream, b"x" * 100 * stream)
        whole += frame(frames.DATA, frames.END_STREAM, stream, b"y" * stream)
    expected = Peer().ours.receive(whole)
    assert len(expected) == 9
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    one, found = Peer(), []
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        found += one.ours.receive(whole[start:end])
    assert found == expected
    assert not one.ours.closing


def test_padding_and_priority_are_left_out() -> None:
    peer = Peer().started()
    block = peer.block()
    padded = b"\x03" + b"\0\0\0\0\x10" + block + b"pad"
    flags = frames.END_HEADERS | frames.PADDED | frames.PRIORITISED
    assert peer.ours.receive(frame(frames.HEADERS, flags, 1, padded)) == [Began(1, FIELDS, False)]
    data = frame(frames.DATA, frames.PADDED | frames.END_STREAM, 1, b"\x02dataxx")
    assert peer.ours.receive(data) == [Came(1, b"data", True)]


def test_headers_in_parts() -> None:
    peer = Peer().started()
    block = peer.block()
    parts = frame(frames.HEADERS, frames.END_STREAM, 1, block[:4])
    parts += frame(frames.CONTINUATION, 0, 1, block[4:9])
    assert peer.ours.receive(parts) == []
    [event] = peer.ours.receive(frame(frames.CONTINUATION, frames.END_HEADERS, 1, block[9:]))
    assert event == Began(1, FIELDS, True)


def test_trailers_end_a_request() -> None:
    peer = Peer().started().begin()
    block = peer.encoder.encode([(b"x", b"y")])
    flags = frames.END_HEADERS | frames.END_STREAM
    assert peer.ours.receive(frame(frames.HEADERS, flags, 1, block)) == [Came(1, b"", True)]


def test_a_reset_is_told_once_and_what_follows_is_nobodys() -> None:
    peer = Peer().started().begin()
    reset = frame(frames.RST_STREAM, 0, 1, number(ErrorCode.CANCEL))
    assert peer.ours.receive(reset + reset + frame(frames.DATA, 0, 1, b"x")) == [Gone(1)]
    assert peer.sent() == []
    peer.ours.respond(1, b"\x88", b"late", b"\x88")
    assert peer.sent() == []
    assert not peer.ours.closing


def test_pings_and_settings_are_acknowledged() -> None:
    peer = Peer()
    assert peer.ours.receive(START + frame(frames.PING, 0, 0, b"12345678")) == []
    kinds = peer.sent()
    assert (frames.PING, frames.ACK, 0, b"12345678") in kinds
    assert (frames.SETTINGS, frames.ACK, 0, b"") in kinds
    assert peer.ours.receive(frame(frames.PING, frames.ACK, 0, b"12345678")) == []
    assert peer.ours.receive(frame(frames.SETTINGS, frames.ACK, 0)) == []
    assert peer.sent() == []


def test_an_early_end_says_that_no_more_is_wanted() -> None:
    peer = Peer().started().begin()
    peer.ours.finish(1, b"\x88")
    assert peer.sent()[-1] == (frames.RST_STREAM, 0, 1, number(ErrorCode.NO_ERROR))


# --- windows ---------------------------------------------------------------------------------


def test_an_answer_waits_for_its_windows() -> None:
    peer = Peer()
    small = frames.settings({frames.INITIAL_WINDOW_SIZE: 10})
    peer.ours.receive(frames.PREFACE + small)
    peer.begin()
    peer.sent()
    peer.ours.respond(1, b"\x88", b"0123456789abcdef", b"\x89")
    assert peer.sent() == [
        (frames.HEADERS, frames.END_HEADERS, 1, b"\x88"), (frames.DATA, 0, 1, b"0123456789"),
    ]  # fmt: skip
    peer.ours.receive(frame(frames.WINDOW_UPDATE, 0, 1, number(2)))
    assert peer.sent() == [(frames.DATA, 0, 1, b"ab")]
    # A window may become larger by settings, too.
    peer.ours.receive(frames.settings({frames.INITIAL_WINDOW_SIZE: 12}))
    assert (frames.DATA, 0, 1, b"cd") in peer.sent()
    peer.ours.receive(frame(frames.WINDOW_UPDATE, 0, 1, number(100)))
    assert [one[3] for one in peer.sent()[:2]] == [b"ef", b"\x89"]
    assert peer.ours.open == 0


def test_answers_wait_for_the_connections_window() -> None:
    peer = Peer()
    peer.ours.receive(frames.PREFACE + frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 20}))
    peer.begin(1).begin(3)
    peer.sent()
    for stream in (1, 3):
        peer.ours.respond(stream, b"\x88", b"x" * 50_000, b"\x89")
    sent = peer.sent()
    assert sum(len(one[3]) for one in sent if one[0] == frames.DATA) == frames.WINDOW
    assert all(len(one[3]) <= frames.FRAME_SIZE for one in sent)
    peer.ours.receive(frame(frames.WINDOW_UPDATE, 0, 0, number(1 << 20)))
    sent = peer.sent()
    assert sum(len(one[3]) for one in sent if one[0] == frames.DATA) == 100_000 - frames.WINDOW
    assert peer.ours.open == 0


def test_a_window_may_become_negative() -> None:
    peer = Peer().started().begin()
    peer.ours.start(1, b"\x88")
    assert peer.ours.data(1, b"x" * 60_000) == 0
    peer.sent()
    peer.ours.receive(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
    assert peer.ours.data(1, b"more") == 4
    peer.ours.receive(frame(frames.WINDOW_UPDATE, 0, 1, number(59_999)))
    assert [one for one in peer.sent() if one[0] == frames.DATA] == []
    peer.ours.receive(frame(frames.WINDOW_UPDATE, 0, 1, number(10)))
    assert [one[3] for one in peer.sent()] == [b"more"]


def test_more_of_a_stream_is_granted_when_it_is_wanted() -> None:
    peer = Peer(Bounds(stream_window=1000)).started().begin()
    peer.ours.receive(frame(frames.DATA, 0, 1, b"x" * 1000))
    assert peer.sent() == []
    peer.ours.grant(1, 5000)
    [(kind, _, stream, payload)] = peer.sent()
    assert (kind, stream) == (frames.WINDOW_UPDATE, 1)
    assert int.from_bytes(payload, "big") >= 5000
    peer.ours.grant(1, 4000)
    assert peer.sent() == []


def test_the_connections_window_is_given_back() -> None:
    peer = Peer(Bounds(window=100_000, stream_window=100_000)).started().begin()
    given = 0
    for _ in range(20):
        peer.ours.receive(frame(frames.DATA, 0, 1, b"x" * 10_000))
        peer.ours.grant(1, 20_000)
        given += sum(
            int.from_bytes(payload, "big")
            for kind, _, stream, payload in peer.sent()
            if kind == frames.WINDOW_UPDATE and stream == 0
        )
    assert not peer.ours.closing
    assert 100_000 <= given <= 200_000


# --- what a client may not ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20), ErrorCode.PROTOCOL_ERROR),
        (frames.PREFACE + frame(frames.PING, 0, 0, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (START + frame(frames.DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
        (START + frame(frames.DATA, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
        (START + frame(frames.HEADERS, 4, 0, b"\x88"), ErrorCode.PROTOCOL_ERROR),
        (START + frame(frames.HEADERS, 4, 2, b"\x88"), ErrorCode.PROTOCOL_ERROR),
        (START + frame(frames.HEADERS, 4, 1, b"\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
        (START + frame(frames.HEADERS, 4, 1, b"\xc0"), ErrorCode.COMPRESSION_ERROR),
        (START + frame(frames.HEADERS, 12, 1, b"\x09\x88"), ErrorCode.PROTOCOL_ERROR),
        (START + frame(frames.HEADERS, 0x24, 1, b"\x88"), ErrorCode.FRAME_SIZE_ERROR),
        (START + frame(frames.HEADERS, 0, 1, b"\x88") + EMPTY, ErrorCode.PROTOCOL_ERROR),
        (START + frame(frames.CONTINUATION, 4, 1, b"\x88"), ErrorCode.PROTOCOL_ERROR),
        (
            START + frame(frames.HEADERS, 0, 1) + frame(frames.CONTINUATION, 4, 3, b"\x88"),
            ErrorCode.PROTOCOL_ERROR,
        ),
        (START + frame(frames.HEADERS, 0, 1) + 20 * frame(9, 0, 1), ErrorCode.ENHANCE_YOUR_CALM),
        (START + frame(frames.RST_STREAM, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (START + frame(frames.RST_STREAM, 0, 7, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (START + frame(frames.RST_STREAM, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        (START + frame(frames.PING, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (START + frame(frames.PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (START + frame(frames.SETTINGS, 0, 1, b""), ErrorCode.PROTOCOL_ERROR),
        (START + frame(frames.SETTINGS, 0, 0, b"12345"), ErrorCode.FRAME_SIZE_ERROR),
        (START + frame(frames.SETTINGS, 1, 0, b"123456"), ErrorCode.FRAME_SIZE_ERROR),
        (START + frames.settings({frames.MAX_FRAME_SIZE: 5}), ErrorCode.PROTOCOL_ERROR),
        (START + frames.settings({frames.ENABLE_PUSH: 2}), ErrorCode.PROTOCOL_ERROR),
        (
            START + frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 31}),
            ErrorCode.FLOW_CONTROL_ERROR,
        ),
        (START + frame(frames.WINDOW_UPDATE, 0, 0, number(0)), ErrorCode.PROTOCOL_ERROR),
        (START + frame(frames.WINDOW_UPDATE, 0, 1, number(1)), ErrorCode.PROTOCOL_ERROR),
        (START + frame(frames.WINDOW_UPDATE, 0, 0, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        (
            START + frame(frames.WINDOW_UPDATE, 0, 0, number((1 << 31) - 1)),
            ErrorCode.FLOW_CONTROL_ERROR,
        ),
        (START + frame(frames.PUSH_PROMISE, 4, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (START + frame(frames.GOAWAY, 0, 0, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
        (START + b"\xff\xff\xff" + bytes(6), ErrorCode.FRAME_SIZE_ERROR),
    ],
)  # fmt: skip
def test_what_ends_a_connection(sent: bytes, code: ErrorCode) -> None:
    peer = Peer()
    peer.ours.receive(sent)
    assert peer.goodbye()[0] == code
    # And it is over.
    assert peer.ours.receive(frame(frames.PING, 0, 0, bytes(8))) == []
    assert peer.sent() == []


def test_data_after_the_end_of_a_stream() -> None:
    peer = Peer().started()
    peer.ours.receive(peer.headers(1, frames.END_HEADERS | frames.END_STREAM))
    peer.ours.receive(frame(frames.DATA, 0, 1, b"x"))
    assert peer.goodbye()[0] == ErrorCode.STREAM_CLOSED


def test_more_than_a_streams_window() -> None:
    peer = Peer(Bounds(stream_window=1000)).started().begin()
    peer.ours.receive(frame(frames.DATA, 0, 1, b"x" * 1001))
    assert peer.goodbye()[0] == ErrorCode.FLOW_CONTROL_ERROR


def test_headers_that_are_too_many() -> None:
    peer = Peer(Bounds(headers=2000)).started()
    block = peer.encoder.encode([*FIELDS, (b"x", b"y" * 9000)])
    peer.ours.receive(frame(frames.HEADERS, frames.END_HEADERS, 1, block))
    assert peer.goodbye() == (ErrorCode.ENHANCE_YOUR_CALM, "too many headers")


def test_headers_that_are_small_on_the_wire_and_large_in_memory() -> None:
    """Ten thousand times one entry of the table, a byte each."""
    peer = Peer().started()
    block = peer.encoder.encode([(b"x", b"y" * 1000)]) + b"\xbe" * 10_000
    peer.ours.receive(frame(frames.HEADERS, frames.END_HEADERS, 1, block))
    assert peer.goodbye()[0] == ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("stream", [0, 1, 2, 3, 99])
def test_empty_data_of_no_stream_is_kept_in_no_table(stream: int) -> None:
    peer = Peer().started()
    for _ in range(5000):
        peer.ours.receive(frame(frames.DATA, 0, stream))
    assert peer.ours.closing
    assert not peer.ours._early


def test_a_client_that_allows_no_table_is_told_that_there_is_none() -> None:
    """Before anything else (RFC 7541, section 4.2)."""
    peer = Peer()
    peer.ours.receive(frames.PREFACE + frames.settings({frames.HEADER_TABLE_SIZE: 0}))
    peer.begin(1).begin(3)
    peer.sent()
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = 0
    peer.ours.respond(1, b"\x88", b"x", literal(b"grpc-status", b"0"))
    peer.ours.finish(3, b"\x88")
    blocks = [payload for kind, _, _, payload in peer.sent() if kind == frames.HEADERS]
    assert [decoder.decode(block) for block in blocks] == [
        [(":status", "200")], [("grpc-status", "0")], [(":status", "200")],
    ]  # fmt: skip


def test_settings_that_say_it_many_times_say_it_once() -> None:
    peer = Peer().started().begin(1)
    payload = frames.settings({frames.INITIAL_WINDOW_SIZE: 5})[9:] * 500
    last = frames.settings({frames.INITIAL_WINDOW_SIZE: 3})[9:]
    peer.ours.receive(frame(frames.SETTINGS, 0, 0, payload + last))
    peer.sent()
    peer.ours.respond(1, b"\x88", b"abcdef", b"\x89")
    assert [one[3] for one in peer.sent() if one[0] == frames.DATA] == [b"abc"]


def test_streams_beyond_the_bound_are_refused_and_nothing_is_lost() -> None:
    peer = Peer(Bounds(streams=2)).started().begin(1).begin(3)
    assert peer.ours.receive(peer.headers(5)) == []
    assert peer.sent() == [(frames.RST_STREAM, 0, 5, number(ErrorCode.REFUSED_STREAM))]
    peer.ours.respond(1, b"\x88", b"", b"\x89")
    peer.sent()
    peer.begin(7)


def test_who_takes_no_answers_gets_no_more_of_them() -> None:
    peer = Peer(Bounds(unsent=100_000))
    peer.ours.receive(frames.PREFACE + frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
    peer.begin(1).begin(3)
    peer.ours.respond(1, b"\x88", b"x" * 60_000, b"\x89")
    peer.ours.respond(3, b"\x88", b"x" * 60_000, b"\x89")
    peer.sent()
    assert peer.ours.receive(peer.headers(5)) == []
    assert peer.sent() == [(frames.RST_STREAM, 0, 5, number(ErrorCode.REFUSED_STREAM))]
    peer.ours.receive(frame(frames.RST_STREAM, 0, 1, number(ErrorCode.CANCEL)))
    peer.begin(7)


@pytest.mark.parametrize(
    "kind", ["reset", "ping", "settings", "empty", "scrap", "priority", "closed"]
)
def test_what_leads_to_nothing_may_be_had_now_and_then(kind: str) -> None:
    """Resets right after requests, floods of pings and the like end a connection."""
    now = 0.0
    peer = Peer(clock=lambda: now).started().begin(1)
    peer.ours.receive(frame(frames.RST_STREAM, 0, 1, number(ErrorCode.CANCEL)))
    peer.begin(3)
    stream = 3

    def once() -> None:
        nonlocal stream
        if kind == "reset":
            stream += 2
            data = peer.headers(stream) + frame(frames.RST_STREAM, 0, stream, number(8))
        else:
            data = {
                "ping": frame(frames.PING, 0, 0, bytes(8)),
                "settings": EMPTY,
                "empty": frame(frames.DATA, 0, 3),
                "scrap": frame(frames.DATA, 0, 3, b"x"),
                "priority": frame(frames.PRIORITY, 0, 3, bytes(5)),
                "closed": frame(frames.DATA, 0, 1, b"x"),
            }[kind]
        peer.ours.receive(data)
        peer.ours.grant(3, 1000)
        peer.ours.take()

    for _ in range(1500):
        once()
    assert not peer.ours.closing
    for _ in range(100):
        now += 1.0
        for _ in range(100):
            once()
    assert not peer.ours.closing
    for _ in range(3000):
        once()
    assert peer.ours.closing


def test_who_cancels_much_and_asks_much_is_welcome() -> None:
    peer = Peer().started()
    for stream in range(1, 40_000, 4):
        peer.ours.receive(peer.headers(stream) + frame(frames.RST_STREAM, 0, stream, number(8)))
        peer.begin(stream + 2)
        peer.ours.respond(stream + 2, b"\x88", b"", b"\x89")
        peer.ours.take()
    assert not peer.ours.closing


@pytest.mark.parametrize(
    "opening", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"POST /v2 HTTP/1.1\r\n"]
)
def test_who_speaks_http_1_is_told_so(opening: bytes) -> None:
    peer = Peer()
    assert peer.ours.receive(opening) == []
    answer = peer.ours.take()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"gRPC" in answer
    assert peer.ours.closing


def test_leaving() -> None:
    peer = Peer().started().begin(1)
    peer.ours.leave()
    [(kind, _, _, payload)] = peer.sent()
    assert (kind, payload) == (frames.GOAWAY, number(1) + number(0))
    assert peer.ours.receive(peer.headers(3)) == []
    assert peer.sent() == [(frames.RST_STREAM, 0, 3, number(ErrorCode.REFUSED_STREAM))]
    peer.ours.respond(1, b"\x88", b"x", b"\x89")
    assert len(peer.sent()) == 4
    assert not peer.ours.closing


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.builds(
            frame,
            st.integers(0, 12),
            st.sampled_from([0, 1, 4, 5, 8, 12, 0x20, 0xFF]),
            st.sampled_from([0, 1, 2, 3, 5, 1 << 30]),
            st.binary(max_size=40)
            | st.sampled_from([hpack.Encoder().encode(FIELDS), bytes(4), number(1000), bytes(8)]),
        )
        | st.binary(max_size=30),
        max_size=30,
    )
)
def test_nothing_that_is_sent_raises_or_is_answered_by_nonsense(parts: list[bytes]) -> None:
    peer = Peer()
    peer.ours.receive(START)
    for part in parts:
        for event in peer.ours.receive(part):
            if isinstance(event, Began) and event.stream % 4 == 1:
                peer.ours.respond(event.stream, b"\x88", b"x" * 100, b"\x89")
    for kind, _, stream, payload in peer.sent():
        assert kind <= frames.CONTINUATION
        assert len(payload) <= frames.FRAME_SIZE
        assert (stream == 0) == (kind in (frames.SETTINGS, frames.PING, frames.GOAWAY)) or (
            kind == frames.WINDOW_UPDATE
        )


# --- with somebody else's client -------------------------------------------------------------


def test_another_implementation_understands_it() -> None:
    """`h2`, which checks what it is sent."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    ours: Connection[list[tuple[bytes, bytes]]] = Connection(list)
    client.initiate_connection()
    streams = []
    for _ in range(3):
        stream = client.get_next_available_stream_id()
        client.send_headers(stream, [(n.decode(), v.decode()) for n, v in FIELDS])
        client.send_data(stream, b"q" * 10_000, end_stream=True)
        streams.append(stream)
    events, got = ours.receive(client.data_to_send()), dict[int, bytes]()
    assert [event.stream for event in events if isinstance(event, Began)] == streams
    assert sum(len(event.data) for event in events if isinstance(event, Came)) == 30_000
    answers = {streams[0]: b"", streams[1]: b"a" * 500, streams[2]: b"b" * 200_000}
    for stream, body in answers.items():
        ours.respond(stream, b"\x88", body, literal(b"grpc-status", b"0"))
    ended = set()
    for _ in range(100):
        for event in client.receive_data(ours.take()):
            if isinstance(event, h2.events.DataReceived):
                assert event.stream_id is not None
                got[event.stream_id] = got.get(event.stream_id, b"") + (event.data or b"")
                client.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
            elif isinstance(event, h2.events.TrailersReceived):
                assert event.headers == [(b"grpc-status", b"0")]
            elif isinstance(event, h2.events.StreamEnded):
                ended.add(event.stream_id)
        ours.receive(client.data_to_send())
        if len(ended) == 3:
            break
    assert ended == set(streams)
    assert got[streams[2]] == answers[streams[2]]
    assert got[streams[1]] == answers[streams[1]]
    ours.close()
    [event] = client.receive_data(ours.take())
    assert isinstance(event, h2.events.ConnectionTerminated)
