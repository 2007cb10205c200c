"""Messages between a server and the process that decodes for it: a header, a length, bytes."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firewall.decoding.decode import Target

#: Width, height, channels and resize of the target, the two limits, and bytes that follow.
_REQUEST = struct.Struct("!4I?3Q")
#: 1 for pixels and 0 for a problem, and bytes that follow.
_REPLY = struct.Struct("!BQ")
#: Bytes of a problem's text.
_MAX_PROBLEM = 1024


@dataclass(frozen=True)
class DecodeRequest:
    """An image to decode, and within which limits."""

    data: bytes
    target: Target
    max_pixels: int
    max_scan_pixels: int

    def header(self) -> bytes:
        """What is sent in front of `data`."""
        target = self.target
        return _REQUEST.pack(
            target.width,
            target.height,
            target.channels,
            target.resize,
            target.squash,
            self.max_pixels,
            self.max_scan_pixels,
            len(self.data),
        )


def read_request(connection: socket.socket) -> DecodeRequest:
    """Wait for a request.

    Raises:
        EOFError: the other side is gone.
        OSError: likewise, or the socket's timeout passed.

    """
    *sides, max_pixels, max_scan_pixels, length = _REQUEST.unpack(
        bytes(read_exactly(connection, _REQUEST.size))
    )
    return DecodeRequest(
        bytes(read_exactly(connection, length)), Target(*sides), max_pixels, max_scan_pixels
    )


def pixels(array: npt.NDArray[np.uint8]) -> bytes:
    """A reply with an image."""
    body = array.tobytes()
    return _REPLY.pack(1, len(body)) + body


def problem(text: str) -> bytes:
    """A reply that says why there is no image."""
    body = text.encode()[:_MAX_PROBLEM]
    return _REPLY.pack(0, len(body)) + body


REPLY_HEADER = _REPLY.size


def reply_header(header: bytes, target: Target) -> tuple[bool, int]:
    """Whether a reply holds pixels, and bytes that follow.

    Raises:
        ValueError: no reply that a decoder would send; it has been broken into, or is another
            program.

    """
    kind, length = _REPLY.unpack(header)
    size = target.width * target.height * target.channels
    if kind not in (0, 1) or (length != size if kind else length > _MAX_PROBLEM):
        raise ValueError("not a reply of a decoder")
    return bool(kind), int(length)


def read_exactly(connection: socket.socket, size: int) -> bytearray:
    """Receive a number of bytes.

    Raises:
        EOFError: the other side is gone.
        OSError: likewise, or the socket's timeout passed.

    """
    body = bytearray(size)
    view = memoryview(body)
    while view:
        received = connection.recv_into(view)
        if not received:
            raise EOFError
        view = view[received:]
    return body
