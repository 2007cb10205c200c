"""Attacks on an HTTP port: headers and bodies without end, or that do not come."""

from __future__ import annotations

import io
import zlib
from functools import lru_cache

import numpy as np
from PIL import Image

from tests.support.flooding import Flood, Link
from tests.support.grpc_floods import SLOW_MESSAGE, SLOW_RATE

_INFER = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: localhost\r\n"
_LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n"


def idle_connections(link: Link) -> None:
    """Connect and say nothing, or ask once and then say nothing."""
    if link.number % 2:
        link.send(_LIVE + b"\r\n")
    link.idle()


def slow_headers(link: Link) -> None:
    """A byte of the headers now and then."""
    for byte in _LIVE + b"X-Slow: " + b"x" * 100_000:
        link.send(bytes((byte,)))
        link.pause(0.5)
        if link.over:
            return


def endless_headers(link: Link) -> None:
    """Headers without end: of small fields, one large value, the path, or the trailers."""
    link.discard()
    small = b"".join(b"x%d: y\r\n" % number for number in range(1000))
    first, again = (
        (_LIVE, small),
        (_LIVE + b"X-Large: ", b"v" * 65_536),
        (b"GET /", b"p" * 65_536),
        (_INFER + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n", small),
    )[link.number % 4]
    link.send(first)
    while not link.over:
        link.send(again)


def many_fields(link: Link) -> None:
    """Requests with a thousand header fields."""
    link.discard()
    request = _LIVE + b"".join(b"x%d: y\r\n" % number for number in range(1000)) + b"\r\n"
    while not link.over:
        link.send(request)


def pipelining(link: Link) -> None:
    """Requests without waiting for answers, which are read."""
    link.discard()
    requests = (_LIVE + b"\r\n") * 1000
    while not link.over:
        link.send(requests)


def never_read(link: Link) -> None:
    """Large answers that are asked for and not read."""
    requests = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
    while not link.over:
        link.send(requests)


def tiny_chunks(link: Link) -> None:
    """Bodies in chunks of one byte."""
    link.discard()
    chunks = b"1\r\nx\r\n" * 10_000
    link.send(_INFER + b"Transfer-Encoding: chunked\r\n\r\n")
    while not link.over:
        link.send(chunks)


def slow_bodies(link: Link) -> None:
    """A message of 600 KB at 0.12 MB/s."""
    link.send(_INFER + b"Content-Length: %d\r\n\r\n" % SLOW_MESSAGE)
    for _ in range(10 * SLOW_MESSAGE // SLOW_RATE):
        link.send(b"\0" * (SLOW_RATE // 10))
        link.pause(0.1)
        if link.over:
            return
    link.receive()


@lru_cache
def _bomb(mebibytes: int) -> bytes:
    deflater = zlib.compressobj(9, wbits=31)
    parts = [deflater.compress(bytes(1 << 20)) for _ in range(mebibytes)]
    return b"".join([*parts, deflater.flush()])


def gzip_bombs(link: Link) -> None:
    """Bodies of zeros that are a thousand times as large when inflated: within the limit or not."""
    link.discard()
    body = _bomb(60 if link.number % 2 else 1024)
    request = _INFER + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    while not link.over:
        link.send(request)


def photograph(side: int, *, progressive: bool = False) -> bytes:
    """A square JPEG that is as costly to decode as its size allows."""
    small = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    image = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, progressive=progressive)
    return buffer.getvalue()


@lru_cache
def _upload() -> bytes:
    image = photograph(4992, progressive=True)
    body = (
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n'
        b"Content-Type: image/jpeg\r\n\r\n" + image + b"\r\n--b--\r\n"
    )
    return (
        b"POST /firewall/v1/models/tiny:predict HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body) + body
    )


def photographs(link: Link) -> None:
    """Photographs of nearly 25 megapixels, one after the other."""
    while not link.over:
        link.send(_upload())
        while not link.over and not link.receive():
            continue


def probe_slowly(link: Link) -> None:
    """A request of an operator's page whose headers do not end."""
    link.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    while not link.over:
        link.send(b"x")
        link.pause(0.5)


FLOODS: dict[str, Flood] = {
    "slow headers": Flood(slow_headers, 500),
    "endless headers": Flood(endless_headers, 4),
    "many header fields": Flood(many_fields),
    "idle connections": Flood(idle_connections, 2000),
    "pipelining": Flood(pipelining),
    "never read": Flood(never_read, 16, small_buffers=True),
    "tiny chunks": Flood(tiny_chunks),
    "slow bodies": Flood(slow_bodies, 128),
    "gzip bombs": Flood(gzip_bombs, 4),
    "photographs": Flood(photographs, 8),
}
OPERATIONS: dict[str, Flood] = {"slow connections": Flood(probe_slowly, 200)}
