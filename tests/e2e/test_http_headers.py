"""Headers of HTTP requests that are too large, or never end."""

from __future__ import annotations

import socket
import time

import pytest

from tests.support.served import Served

REQUEST = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n"


def send(server: Served, payload: bytes) -> bytes:
    """Send in small parts, until the server closes; returns what it answered."""
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=20) as connection:
        try:
            for start in range(0, len(payload), 8192):
                connection.sendall(payload[start : start + 8192])
                time.sleep(0.001)
            return connection.recv(4096)
        except ConnectionError:
            return b""


@pytest.mark.parametrize(
    "headers",
    [
        b"x-large: " + b"a" * 500_000 + b"\r\n",
        b"".join(b"x-%d: a\r\n" % number for number in range(50_000)),
        b"x" * 500_000,
    ],
    ids=["one large value", "many fields", "an endless name"],
)
def test_headers_over_the_limit_close_the_connection(headers: bytes, server: Served) -> None:
    assert send(server, REQUEST + headers + b"\r\n") == b""


def test_headers_within_the_limit_are_answered_again_and_again(server: Served) -> None:
    large = REQUEST + b"x-large: " + b"a" * 30_000 + b"\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=20) as connection:
        for _ in range(5):
            connection.sendall(large)
            answer = b""
            while not answer.endswith(b'{"live": true}'):
                answer += connection.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200")


def test_body_is_not_counted_as_headers(server: Served) -> None:
    body = b"{" + b" " * 300_000
    head = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    assert send(server, head % len(body) + body).startswith(b"HTTP/1.1 400")
