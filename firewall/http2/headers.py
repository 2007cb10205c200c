"""Header blocks (RFC 7541): read by `hpack`, and remembered; written without a table.

A client that asks again sends the same block again, as soon as everything in it is in its table. A
block that changes no table means the same until one does, so it need not be read twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import hpack

from firewall.http2.frames import ErrorCode

Meaning = TypeVar("Meaning")
Fields = Sequence[tuple[bytes, bytes]]

#: Blocks that are remembered, and their bytes at most.
_KEPT, _LONGEST = 64, 512


class BadBlock(Exception):
    """A block that cannot be read: the connection's tables are lost with it."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class HeaderReader(Generic[Meaning]):
    """The decoding side of one connection."""

    def __init__(self, interpret: Callable[[Fields], Meaning], most: int) -> None:
        """Begin with empty tables.

        Args:
            interpret: what a block's fields mean. Of equal fields it is asked once, so what it
                gives must not be changed.
            most: bytes of a list of fields, as RFC 9113 counts them.

        """
        self._interpret = interpret
        self._decoder = hpack.Decoder(max_header_list_size=most)
        self._known: dict[bytes, Meaning] = {}

    def read(self, block: bytes) -> Meaning:
        """What a block means.

        Raises:
            BadBlock: it is none, or too long.

        """
        known = self._known.get(block)
        if known is not None:
            return known
        changes = changes_table(block)
        if changes:
            # What was remembered may point to entries that move.
            self._known.clear()
        try:
            fields = self._decoder.decode(block, raw=True)
        except hpack.OversizedHeaderListError as error:
            raise BadBlock(ErrorCode.ENHANCE_YOUR_CALM, "too many headers") from error
        except (hpack.HPACKError, UnicodeDecodeError) as error:
            raise BadBlock(ErrorCode.COMPRESSION_ERROR, "headers that cannot be read") from error
        meaning = self._interpret([(bytes(name), bytes(value)) for name, value in fields])
        if not changes and len(block) <= _LONGEST:
            if len(self._known) >= _KEPT:
                del self._known[next(iter(self._known))]
            self._known[block] = meaning
        return meaning


def changes_table(block: bytes) -> bool:
    """Whether reading a block changes the reader's table; True also for one that is broken."""
    at = 0
    try:
        while at < len(block):
            first = block[at]
            if first & 0x80:
                _, at = _integer(block, at, 0x7F)
            elif first & 0x60:
                return True
            else:
                name, at = _integer(block, at, 0x0F)
                for _ in range(1 if name else 2):
                    length, at = _integer(block, at, 0x7F)
                    at += length
    except IndexError:
        return True
    return at != len(block)


def _integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    """A number (RFC 7541, section 5.1), and where the next byte is."""
    value = block[at] & prefix
    at += 1
    if value < prefix:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at
        if shift > 28:
            raise IndexError


def literal(name: bytes, value: bytes) -> bytes:
    """A field that goes into no table, written in full (RFC 7541, section 6.2.2)."""
    return b"\x00" + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    length = len(text)
    if length < 0x7F:
        return b"%c%b" % (length, text)
    found = bytearray([0x7F])
    length -= 0x7F
    while length > 0x7F:
        found.append(length & 0x7F | 0x80)
        length >>= 7
    found.append(length)
    return bytes(found) + text
