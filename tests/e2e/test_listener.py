"""Clients that do not behave, and connections that come and go."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import hpack
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from firewall.bundle.store import Bundle
from firewall.http2 import frames
from firewall.http2.frames import frame
from firewall.serve.grpc_wire import prefixed
from firewall.serve.tls import Credentials
from tests.e2e.test_transports import INFER, SETTINGS, Live, message, outcome
from tests.support.authority import Authority

FIELDS = [
    (":method", "POST"), (":scheme", "http"), (":path", INFER), (":authority", "x"),
    ("te", "trailers"), ("content-type", "application/grpc"),
]  # fmt: skip


@pytest.fixture
def live(tiny: Bundle) -> Iterator[Live]:
    one = Live(tiny, replace(SETTINGS, threads=4, backlog=4))
    yield one
    one.close()


class Raw:
    """A connection by hand."""

    def __init__(self, live: Live, begin: bool = True) -> None:
        self.sock = socket.create_connection(("127.0.0.1", live.server.port), 10)
        live.opened.append(self.sock)
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self._rest = b""
        if begin:
            self.sock.sendall(frames.PREFACE + frames.settings({}))

    def call(self, stream: int, fields: Any = FIELDS, ended: bool = False) -> None:
        flags = frames.END_HEADERS | ended * frames.END_STREAM
        self.sock.sendall(frame(frames.HEADERS, flags, stream, self.encoder.encode(fields)))

    def data(self, stream: int, data: bytes, ended: bool = True) -> None:
        self.sock.sendall(frame(frames.DATA, int(ended), stream, data))

    def fields(self, stream: int) -> dict[str, str]:
        """All headers of an answer, until its end."""
        found: dict[str, str] = {}
        while True:
            kind, flags, where, payload = self.frame()
            if where != stream:
                continue
            if kind == frames.HEADERS:
                found |= dict(self.decoder.decode(payload))  # type: ignore[arg-type]
            if kind == frames.RST_STREAM:
                return found | {"reset": str(int.from_bytes(payload, "big"))}
            if flags & frames.END_STREAM and kind in (frames.HEADERS, frames.DATA):
                return found

    def frame(self) -> tuple[int, int, int, bytes]:
        head = self.exactly(9)
        payload = self.exactly(int.from_bytes(head[:3], "big"))
        return head[3], head[4], int.from_bytes(head[5:9], "big"), payload

    def exactly(self, size: int) -> bytes:
        while len(self._rest) < size:
            part = self.sock.recv(1 << 16)
            if not part:
                raise EOFError
            self._rest += part
        found, self._rest = self._rest[:size], self._rest[size:]
        return found

    def until_closed(self) -> list[int]:
        """Kinds of the frames until the server closes."""
        found = []
        try:
            while True:
                found.append(self.frame()[0])
        except (EOFError, ConnectionError):
            return found


def test_a_request_by_hand(live: Live) -> None:
    raw = Raw(live)
    raw.call(1)
    raw.data(1, prefixed(message(1)))
    found = raw.fields(1)
    assert found[":status"] == "200"
    assert found["grpc-status"] == "0"
    assert found["x-request-id"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({":method": "GET"}, {":status": "405"}),
        ({"content-type": "application/json"}, {":status": "415"}),
        ({"content-type": "application/grpc-web+proto"}, {":status": "415"}),
        ({"content-type": "application/grpc+proto"}, {"grpc-status": "3"}),
        ({":path": "/none"}, {"grpc-status": "12"}),
        ({"grpc-timeout": "soon"}, {"grpc-status": "3"}),
        ({"connection": "close"}, {"reset": "1"}),
        ({"Upper": "x"}, {"reset": "1"}),
    ],
)
def test_headers_that_are_no_call(live: Live, change: dict[str, str], expected: Any) -> None:
    raw = Raw(live)
    raw.call(1, list((dict(FIELDS) | change).items()), ended=True)
    assert expected.items() <= raw.fields(1).items()
    # The connection goes on.
    raw.call(3)
    raw.data(3, prefixed(message(1)))
    assert raw.fields(3)["grpc-status"] == "0"


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (b"", "3", "missing"),
        (b"\0\0\0", "3", "ends after 3 bytes"),
        (b"\0\0\0\0\x09abc", "3", "ends after 8 bytes"),
        (b"\1\0\0\0\3abc", "12", "compressed"),
        (b"\7\0\0\0\3abc", "3", "first byte"),
        (b"\0\xff\xff\xff\xffabc", "8", "at most"),
        (b"\0\0\0\0\3\xff\xff\xff", "3", "is not"),
    ],
)
def test_messages_that_are_none(live: Live, data: bytes, code: str, text: str) -> None:
    raw = Raw(live)
    raw.call(1)
    raw.data(1, data)
    found = raw.fields(1)
    assert found["grpc-status"] == code
    assert text in found["grpc-message"]


def test_a_message_bit_by_bit(live: Live) -> None:
    raw = Raw(live)
    raw.call(1)
    data = prefixed(message(1))
    for at in range(0, len(data), 10):
        raw.data(1, data[at : at + 10], ended=at + 10 >= len(data))
    assert raw.fields(1)["grpc-status"] == "0"


def test_a_message_in_many_parts(live: Live) -> None:
    """More than are kept as they come, some of them scraps; within a window, which this client
    does not look at."""
    raw = Raw(live)
    raw.call(1)
    data = prefixed(message(2, rows=4))
    assert len(data) < 1 << 16
    cuts = [0, 3, 7, 8, *range(100, len(data), 67), len(data)]
    assert len(cuts) > 200
    for start, end in pairwise(cuts):
        raw.data(1, data[start:end], ended=end == len(data))
    assert raw.fields(1)["grpc-status"] in ("0", "7")


def test_a_browser_is_told_what_this_is(live: Live) -> None:
    raw = Raw(live, begin=False)
    raw.sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    text = b""
    while part := raw.sock.recv(4096):
        text += part
    assert text.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert text.endswith(b"This port speaks gRPC, which is HTTP/2.\n")


def test_who_breaks_the_protocol_is_said_goodbye_to(live: Live) -> None:
    raw = Raw(live)
    raw.sock.sendall(frame(frames.DATA, 0, 0, b"x"))
    assert raw.until_closed()[-1] == frames.GOAWAY
    assert not isinstance(outcome(live, message(1)), grpc.StatusCode)


def test_who_says_nothing_is_not_waited_for(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firewall.serve.link.SILENT", 0.3)
    silent, half = Raw(live, begin=False), Raw(live, begin=False)
    half.sock.sendall(frames.PREFACE[:10])
    usual = Raw(live)
    for raw in (silent, half):
        raw.until_closed()
    usual.call(1)
    usual.data(1, prefixed(message(1)))
    assert usual.fields(1)["grpc-status"] == "0"


def test_who_reads_nothing_holds_up_nobody(live: Live) -> None:
    """Though it asks, and pings."""
    raw = Raw(live)
    raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.sock.settimeout(1.0)
    over = threading.Event()

    def flood() -> None:
        stream = 1
        try:
            while not over.is_set():
                raw.call(stream)
                raw.data(stream, prefixed(b"\xff" * 100))
                stream += 2
        except OSError:
            pass

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        for _ in range(30):
            found = outcome(live, message(1))
            # The queue is full of what it asks.
            assert isinstance(found, bytes) or found is grpc.StatusCode.RESOURCE_EXHAUSTED
            time.sleep(0.02)
    finally:
        over.set()
        raw.sock.close()
        flooding.join(10)


def test_a_flood_of_resets_ends_its_connection_alone(live: Live) -> None:
    """CVE-2023-44487."""
    raw = Raw(live)
    reset = (8).to_bytes(4, "big")

    def flood() -> None:
        for stream in range(1, 40_000, 2):
            raw.call(stream)
            raw.sock.sendall(frame(frames.RST_STREAM, 0, stream, reset))
        while True:
            raw.frame()

    with pytest.raises((EOFError, ConnectionError)):
        flood()
    assert not isinstance(outcome(live, message(1)), grpc.StatusCode)
    end = time.monotonic() + 10
    while not live.server._transport.boundary.idle:
        assert time.monotonic() < end
        time.sleep(0.01)


SILENT = {
    "calls of health": ("/grpc.health.v1.Health/Check", b""),
    # They have been answered once, and may be silent for longer.
    "streams of reflection": (
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", prefixed(b"")
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", SILENT)
def test_who_says_nothing_keeps_health_from_nobody(live: Live, which: str) -> None:
    """Not while the calls come, and not when they have; of them, the oldest are let go."""
    raw = Raw(live)
    path, first = SILENT[which]
    fields = [(n, path if n == ":path" else v) for n, v in FIELDS]
    stub = health_pb2_grpc.HealthStub(live.channel)
    let_go: set[int] = set()
    for stream in range(1, 601, 2):
        raw.call(stream, fields)
        if first:
            raw.data(stream, first, ended=False)
            # Its answer: it is silent from now on.
            while True:
                kind, _, where, _ = raw.frame()
                let_go |= {where} if kind == frames.RST_STREAM else set()
                if where == stream and kind == frames.DATA:
                    break
        if stream % 60 == 1:
            assert stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1
    assert 1 in let_go or raw.fields(1) == {"reset": "8"}
    raw.data(599, first or prefixed(b""))
    assert raw.fields(599)["grpc-status"] == "0"


def test_a_large_answer_is_taken_to_its_end_before_the_server_stops(live: Live) -> None:
    """By a client whose window is small."""
    raw = Raw(live, begin=False)
    raw.sock.sendall(frames.PREFACE + frames.settings({frames.INITIAL_WINDOW_SIZE: 16}))
    raw.call(1)
    raw.data(1, prefixed(message(1)))
    while raw.frame()[0] != frames.DATA:
        pass
    stopping = threading.Thread(target=live.server.stop, args=(10,))
    stopping.start()
    time.sleep(0.5)
    assert stopping.is_alive()
    raw.sock.sendall(frame(frames.WINDOW_UPDATE, 0, 1, frames.number(1000)))
    kinds = raw.until_closed()
    assert frames.DATA in kinds
    assert frames.HEADERS in kinds
    stopping.join(15)
    assert not stopping.is_alive()


def test_who_asks_and_never_reads_is_dropped(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firewall.serve.link.GOODBYE", 0.3)
    raw = Raw(live)
    raw.call(1)
    raw.sock.sendall(frame(frames.DATA, 0, 0, b"x"))
    listener: Any = live.server._transport._listener  # type: ignore[attr-defined]
    end = time.monotonic() + 10
    while len(listener._links) > 1:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_many_connections(live: Live) -> None:
    def one(seed: int) -> Any:
        raw = Raw(live)
        raw.call(1)
        raw.data(1, prefixed(message(seed)))
        found = raw.fields(1)["grpc-status"]
        raw.sock.close()
        return found

    with ThreadPoolExecutor(16) as pool:
        # A full queue is an answer as well.
        assert set(pool.map(one, range(200))) <= {"0", "7", "8"}
    assert len(live.server._transport._listener._links) <= 210  # type: ignore[attr-defined]
    end = time.monotonic() + 10
    while len(live.server._transport._listener._links) > 1:  # type: ignore[attr-defined]
        assert time.monotonic() < end
        outcome(live, message(1))


def test_nothing_is_kept_of_calls_that_are_over(live: Live) -> None:
    """Answered, refused for want of room, refused for what they say, or gone."""
    raw = Raw(live)
    live.model.hold()
    for stream in range(1, 41, 2):
        raw.call(stream)
        raw.data(stream, prefixed(message(1)))
    raw.sock.sendall(frame(frames.RST_STREAM, 0, 3, bytes(4)))
    raw.call(41, [*FIELDS, ("grpc-timeout", "soon")])
    raw.call(43, [(name, "/none" if name == ":path" else value) for name, value in FIELDS])
    assert raw.fields(43)["grpc-status"] == "12"
    live.model.go.set()
    assert raw.fields(1)["grpc-status"] == "0"
    [link] = [
        one
        for one in live.server._transport._listener._links  # type: ignore[attr-defined]
        if one.peer.endswith(f":{raw.sock.getsockname()[1]}")
    ]
    end = time.monotonic() + 10
    while link._exchanges or link.machine.open or not live.server._transport.boundary.idle:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_no_descriptor_is_left_for_a_while(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    listener: Any = live.server._transport._listener  # type: ignore[attr-defined]
    [real] = listener._sockets
    failing, swapped = threading.Event(), threading.Event()

    class Sock:
        def accept(self) -> Any:
            if not failing.is_set():
                failing.set()
                raise OSError(24, "Too many open files")
            return real.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    def swap() -> None:
        listener._accepts_not()
        listener._sockets = [Sock()]
        listener._accepts()
        swapped.set()

    listener.soon(swap)
    assert swapped.wait(10)
    raw = Raw(live)
    raw.call(1)
    raw.data(1, prefixed(message(1)))
    assert raw.fields(1)["grpc-status"] == "0"
    assert failing.is_set()
    assert "no more connections can be accepted" in caplog.text


@pytest.mark.parametrize("host", ["localhost", "::1", "[::1]", "::", "0.0.0.0"])
def test_where_it_listens(tiny: Bundle, host: str) -> None:
    if ":" in host and not _ipv6():
        pytest.skip("no IPv6 here")
    live = Live(tiny, replace(SETTINGS, host=host, http_host="127.0.0.1"))
    try:
        places = {"localhost": ["localhost"], "::": ["127.0.0.1", "[::1]"]}.get(
            host, ["[::1]" if ":" in host else "127.0.0.1"]
        )
        for place in places:
            with grpc.insecure_channel(f"{place}:{live.server.port}") as channel:
                assert channel.unary_unary(INFER)(message(1), timeout=10)
    finally:
        live.close()


def _ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_stopping_says_goodbye_to_who_is_idle(live: Live) -> None:
    raw = Raw(live)
    raw.call(1)
    raw.data(1, prefixed(message(1)))
    raw.fields(1)
    live.server.stop(5)
    assert raw.until_closed()[-1] == frames.GOAWAY
    with pytest.raises(ConnectionRefusedError):
        Raw(live)


def test_tls_is_read_by_one_thread_while_many_answer(tiny: Bundle, tmp_path: Path) -> None:
    """Large requests, which are answered in threads of their own, over one connection."""
    authority = Authority(tmp_path)
    pair = authority.server()
    settings = replace(SETTINGS, tls=Credentials(pair.certificate, pair.key), max_wait=60.0)
    live = Live(tiny, settings)
    live.model._batcher._row_seconds = 0.1
    secret = grpc.ssl_channel_credentials(authority.file.read_bytes())
    try:
        with (
            grpc.secure_channel(f"localhost:{live.server.port}", secret) as channel,
            ThreadPoolExecutor(12) as pool,
        ):
            infer = channel.unary_unary(INFER)
            asked = [message(seed, rows=8) for seed in range(8)]

            def one(number: int) -> str:
                try:
                    return "OK" if infer(asked[number % 8], timeout=20) else "nothing"
                except grpc.RpcError as error:
                    return str(error.code())  # type: ignore[attr-defined]

            # A guard refuses a share of what is clean.
            allowed = {"OK", str(grpc.StatusCode.PERMISSION_DENIED)}
            assert set(pool.map(one, range(400))) <= allowed
    finally:
        live.close()
