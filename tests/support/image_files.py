"""Image files for tests, good and hostile."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def encoded(width: int, height: int, kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    """Random pixels in a file."""
    rng = np.random.default_rng(0)
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}.get(mode, 3)
    pixels = rng.integers(0, 256, (height, width, channels), np.uint8)
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def bomb(side: int = 20_000, bits: int = 1, colour: int = 0, rows: int = 200) -> bytes:
    """A PNG of side x side pixels in a few kilobytes: its header and rows of zeros."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    header = struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0)
    pixels = zlib.compress(bytes(((side * bits * channels + 7) // 8 + 1) * rows), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def segments(jpeg: bytes) -> list[bytes]:
    """A JPEG cut at its markers: SOI, segments (a scan with its coded data), EOI."""
    parts, place = [jpeg[:2]], 2
    while jpeg[place + 1] != 0xD9:
        stop = place + 2 + int.from_bytes(jpeg[place + 2 : place + 4])
        if jpeg[place + 1] == 0xDA:
            while jpeg[stop] != 0xFF or jpeg[stop + 1] == 0 or 0xD0 <= jpeg[stop + 1] <= 0xD7:
                stop += 1
        parts.append(jpeg[place:stop])
        place = stop
    return [*parts, jpeg[place : place + 2]]


def many_scans(width: int, height: int, extra: int) -> bytes:
    """A progressive JPEG whose last scan is repeated: a few bytes each, a visit to every block."""
    black = Image.new("RGB", (width, height))
    buffer = io.BytesIO()
    black.save(buffer, "JPEG", progressive=True)
    *parts, end = segments(buffer.getvalue())
    assert parts[-1][1] == 0xDA
    return b"".join([*parts, *[parts[-1]] * extra, end])


def animation(kind: str) -> bytes:
    """Two frames, as an APNG or an animated WebP."""
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=100)
    return buffer.getvalue()
