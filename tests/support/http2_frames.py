"""HTTP/2 frames by hand, for clients that do what no library lets them do."""

from __future__ import annotations

from collections.abc import Sequence

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, _, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(
    10
)
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4
#: Bytes of a frame that every server takes.
MAX_FRAME = 16_384

Fields = Sequence[tuple[str, str]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + number(stream) + payload


def number(value: int) -> bytes:
    """A 32-bit number, as the payloads of RST_STREAM and WINDOW_UPDATE hold it."""
    return value.to_bytes(4, "big")


def settings(values: dict[int, int] | None = None) -> bytes:
    """A SETTINGS frame."""
    payload = b"".join(key.to_bytes(2, "big") + number(one) for key, one in (values or {}).items())
    return frame(SETTINGS, 0, 0, payload)


def call_fields(path: str) -> Fields:
    """Header fields of a gRPC call."""
    return (
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost"),
        ("te", "trailers"), ("content-type", "application/grpc"),
    )  # fmt: skip


def prefixed(message: bytes) -> bytes:
    """A message as gRPC frames it within DATA."""
    return b"\0" + number(len(message)) + message


def header_block(block: bytes, stream: int, *, end_stream: bool = False) -> bytes:
    """HEADERS, and CONTINUATION frames where the block is too long for one frame."""
    parts = [block[at : at + MAX_FRAME] for at in range(0, len(block), MAX_FRAME)] or [b""]
    frames = []
    for index, part in enumerate(parts):
        kind = HEADERS if index == 0 else CONTINUATION
        flags = END_STREAM if end_stream and index == 0 else 0
        if index == len(parts) - 1:
            flags |= END_HEADERS
        frames.append(frame(kind, flags, stream, part))
    return b"".join(frames)


class HeaderBlocks:
    """Header blocks of the same fields: the first fills the table, later ones refer to it."""

    def __init__(self, fields: Fields) -> None:
        encoder = hpack.Encoder()
        self._first, self._later = encoder.encode(list(fields)), encoder.encode(list(fields))

    def block(self, stream: int) -> bytes:
        """The block for a stream of a connection whose first stream is 1."""
        return self._first if stream == 1 else self._later
