"""gRPC on HTTP/2, as "gRPC over HTTP2" of its specification has it: headers, messages, trailers."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass

import grpc

from firewall.http2.headers import Fields, literal

Metadata = tuple[tuple[str, str | bytes], ...]

#: `:status: 200` and `content-type: application/grpc`, by their places in the static table.
ANSWER_HEAD = b"\x88\x0f\x10\x10application/grpc"
#: Of a stream that is not gRPC's: 405 and 415, and nothing more.
_NOT_POST, _NOT_GRPC = b"\x08\x03405", b"\x08\x03415"
#: Bytes in front of a message: whether it is compressed, and its length.
PREFIX = 5

#: Not application/grpc-web, which is another protocol.
_GRPC = re.compile(rb"^application/grpc($|[+;])")
_TIMEOUT = re.compile(rb"^([0-9]{1,8})([HMSmun])\Z")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
#: Of the transport, and not of the call.
_TRANSPORT = {b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding"}
_OK = literal(b"grpc-status", b"0")
_PLAIN = re.compile(r"[^\x20-\x24\x26-\x7e]")


@dataclass(frozen=True)
class Head:
    """The headers of a request.

    Attributes:
        path: of the method.
        timeout: seconds that the client gives it; None is for ever.
        metadata: the client's own, in order.
        malformed: whether HTTP/2 forbids such headers.
        instead: header block to end the stream with, where it is not gRPC's.
        problem: what is wrong with a header, to be told to the client.

    """

    path: str = ""
    timeout: float | None = None
    metadata: Metadata = ()
    malformed: bool = False
    instead: bytes = b""
    problem: tuple[str, str] | None = None


def read_head(fields: Fields) -> Head:
    """What the fields of a request mean."""
    pseudo: dict[bytes, bytes] = {}
    plain: dict[bytes, bytes] = {}
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in fields:
        if name[:1] == b":":
            if plain or name in pseudo:
                return Head(malformed=True)
            pseudo[name] = value
            continue
        if name != name.lower() or name in (b"connection", b"transfer-encoding", b""):
            return Head(malformed=True)
        plain[name] = value
        if name not in _TRANSPORT:
            metadata += _metadata(name, value)
    if not {b":method", b":scheme", b":path"} <= pseudo.keys():
        return Head(malformed=True)
    path = pseudo[b":path"].decode("ascii", "replace")
    if pseudo[b":method"] != b"POST":
        return Head(path, instead=_NOT_POST)
    if not _GRPC.match(plain.get(b"content-type", b"")):
        return Head(path, instead=_NOT_GRPC)
    timeout, problem = None, None
    if (text := plain.get(b"grpc-timeout")) is not None:
        found = _TIMEOUT.match(text)
        if found is None:
            shown = text[:32].decode("ascii", "replace")
            problem = ("grpc-timeout", f"{shown!r}; expected up to 8 digits and one of HMSmun")
        else:
            timeout = int(found[1]) * _UNITS[found[2]]
    return Head(path, timeout, tuple(metadata), problem=problem)


def _metadata(name: bytes, value: bytes) -> list[tuple[str, str | bytes]]:
    """One field; a binary one may hold several values, and one that cannot be read is left out."""
    try:
        key = name.decode("ascii")
        if not key.endswith("-bin"):
            return [(key, value.decode("ascii"))]
        return [(key, _unbased(part)) for part in value.split(b",")]
    except (UnicodeDecodeError, binascii.Error):
        return []


def _unbased(text: bytes) -> bytes:
    text = text.strip()
    return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)


def prefixed(message: bytes) -> bytes:
    """A message as it is sent."""
    return b"\x00%b%b" % (len(message).to_bytes(4, "big"), message)


def good_trailers(metadata: Iterable[tuple[str, str | bytes]]) -> bytes:
    """Header block after an answer."""
    return _OK + _block(metadata)


def bad_trailers(
    code: grpc.StatusCode, details: str, metadata: Iterable[tuple[str, str | bytes]]
) -> bytes:
    """Header block that ends a call with an error: after an answer's head, or with it as all."""
    status = literal(b"grpc-status", str(code.value[0]).encode())
    return status + literal(b"grpc-message", _percent(details)) + _block(metadata)


def _block(metadata: Iterable[tuple[str, str | bytes]]) -> bytes:
    return b"".join(
        literal(
            key.encode(),
            value.encode()
            if isinstance(value, str)
            else base64.b64encode(value).rstrip(b"=")
            if key.endswith("-bin")
            else value,
        )
        for key, value in metadata
    )


def _percent(text: str) -> bytes:
    """As gRPC writes status text: printable ASCII as it is, everything else by its bytes."""

    def escaped(found: re.Match[str]) -> str:
        return "".join(f"%{byte:02X}" for byte in found[0].encode(errors="replace"))

    return _PLAIN.sub(escaped, text).encode()
