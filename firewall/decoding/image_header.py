"""What an image file says about itself, read from its bytes without decoding a pixel.

Every reader here is linear in the length of the file, allocates next to nothing, and looks at a
bounded number of segments, so that it may run on files of strangers before any limit is applied.
It is stricter than decoders are: a file that two decoders could read differently is refused.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from firewall.decoding.exif import orientation
from firewall.errors import InvalidInput

#: Segments of a JPEG, or chunks of a PNG or WebP file, that are looked at. A photograph has 10 to
#: 50, a colour profile up to 255 more; PNG writers emit a chunk of 8 KiB and more at a time.
MAX_SEGMENTS = 16_384

_DAMAGED = "a damaged or truncated image"

#: A marker within the entropy-coded data of a JPEG: not a stuffed zero, a restart or a fill byte.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_SOI, _EOI, _SOS, _APP0, _APP1, _APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE
_DHT, _DQT, _DRI = 0xC4, 0xDB, 0xDD
#: Frames that are decoded: baseline, extended sequential and progressive, Huffman-coded.
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
#: Every other start of frame, arithmetic coding (0xCC) and hierarchical files (0xDE, 0xDF).
_OTHER_FRAMES = frozenset({*range(0xC3, 0xD0), 0xDE, 0xDF}) - {_DHT}
#: A second start or an early end of the image, and the extensions that T.81 reserves.
_UNEXPECTED = frozenset({_SOI, _EOI, *range(0xF0, 0xFE), 0xFF})
#: Segments without which the pixels would differ: frame, scans, tables, restarts, and the two by
#: which a decoder chooses the colour model (JFIF and Adobe).
_NEEDED = frozenset({*_FRAMES, _SOS, _DHT, _DQT, _DRI, _APP0, _APP14})

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Colour type -> channels, and the bit depths that it may have.
_PNG_COLOURS = {
    0: (1, (1, 2, 4, 8, 16)),
    2: (3, (8, 16)),
    3: (3, (1, 2, 4, 8)),
    4: (2, (8, 16)),
    6: (4, (8, 16)),
}
_PNG_PALETTE = 3


@dataclass(frozen=True)
class ImageHeader:
    """What a file says about its pixels, and which of its parts a decoder needs."""

    format: Literal["JPEG", "PNG", "WebP"]
    #: Pixels as stored, before the orientation is applied.
    width: int
    height: int
    #: Channels with alpha: 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha, or CMYK.
    channels: int
    #: Bits a channel; of a palette image, of an index.
    bits: int
    alpha: bool = False
    animated: bool = False
    palette: bool = False
    interlaced: bool = False
    progressive: bool = False
    #: Passes that a decoder makes over the pixels; more than 1 in JPEG only.
    scans: int = 1
    #: EXIF orientation, 1 to 8.
    orientation: int = 1
    #: Pixels that one scan visits: width and height rounded up to the blocks of a JPEG.
    padded_pixels: int = 0
    #: Bytes of coefficients that a decoder keeps until the last scan of a JPEG is read.
    coefficient_bytes: int = 0
    #: Offsets (start, stop) of the parts that a decoder needs: no metadata, no colour profile.
    parts: tuple[tuple[int, int], ...] = ()

    @property
    def pixels(self) -> int:
        """Width x height."""
        return self.width * self.height

    @property
    def work(self) -> float:
        """Work of decoding: pixels x scans, in megapixels."""
        return self.padded_pixels * self.scans / 1e6

    def decoded_bytes(self, scale: int = 1) -> int:
        """Bytes that decoding holds at once, without conversions that follow.

        Measured with Pillow 13 (libjpeg-turbo 3.2, libwebp 1.6) on images of 12 and 24 megapixels;
        Pillow stores colour in 4 bytes a pixel.

        Args:
            scale: 1, 2, 4 or 8, by which a JPEG is decoded smaller.

        """
        stored = -(-self.width // scale) * -(-self.height // scale)
        if self.format == "WebP":
            # Two canvases, a copy of the first and the image, 4 bytes a pixel each.
            return 16 * stored
        wide = self.channels > 1 and not self.palette
        return (4 if wide else 1) * stored + self.coefficient_bytes


def read_header(data: bytes, field: str) -> ImageHeader:
    """Read the header of a JPEG, PNG or WebP file.

    Args:
        data: the whole file.
        field: where it came from, for errors.

    Raises:
        InvalidInput: naming `field`: another format, damaged, truncated, or of a kind that is not
            decoded here (arithmetic, lossless or hierarchical JPEG).

    """
    try:
        if data[:3] == b"\xff\xd8\xff":
            return _jpeg(data, field)
        if data[:8] == _PNG_SIGNATURE:
            return _png(data, field)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data, field)
    except (struct.error, IndexError) as error:
        raise InvalidInput(field, _DAMAGED) from error
    raise InvalidInput(field, "neither a JPEG, a PNG nor a WebP file")


def strip(data: bytes, header: ImageHeader) -> bytes:
    """Rebuild a file from the parts that a decoder needs.

    Metadata is not only unneeded: a colour profile of a kilobyte inflates to a megabyte, and a PNG
    may hold thousands.
    """
    # Views, so that the file is copied once.
    view = memoryview(data)
    parts: list[bytes | memoryview] = [view[start:stop] for start, stop in header.parts]
    if header.format == "JPEG":
        parts = [b"\xff\xd8", *parts, b"\xff\xd9"]
    elif header.format == "PNG":
        parts = [_PNG_SIGNATURE, *parts]
    else:
        length = 4 + sum(len(part) for part in parts)
        parts = [b"RIFF", struct.pack("<I", length), b"WEBP", *parts]
    return b"".join(parts)


# --- JPEG (ITU-T T.81) --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    width: int
    height: int
    progressive: bool
    #: (horizontal, vertical) sampling factor of each component.
    sampling: tuple[tuple[int, int], ...]

    @property
    def unit(self) -> tuple[int, int]:
        """Width and height in pixels of a minimum coded unit."""
        return 8 * max(h for h, _ in self.sampling), 8 * max(v for _, v in self.sampling)

    @property
    def units(self) -> int:
        """Minimum coded units of the image."""
        across, down = self.unit
        return -(-self.width // across) * -(-self.height // down)

    @property
    def padded_pixels(self) -> int:
        return self.units * self.unit[0] * self.unit[1]

    @property
    def coefficient_bytes(self) -> int:
        """64 coefficients of 2 bytes for each block of each component."""
        return 128 * self.units * sum(h * v for h, v in self.sampling)


def _jpeg(data: bytes, field: str) -> ImageHeader:
    frame: _Frame | None = None
    turned: int | None = None
    parts: list[tuple[int, int]] = []
    interleaved = True
    scans, place = 0, 2
    for _ in range(MAX_SEGMENTS):
        start = _next_marker(data, place, field)
        marker = data[start + 1]
        if marker == _EOI and frame is not None and scans:
            # With several scans, decoders keep all coefficients until the last.
            kept = frame.progressive or scans > 1 or not interleaved
            return ImageHeader(
                format="JPEG",
                width=frame.width,
                height=frame.height,
                channels=len(frame.sampling),
                bits=8,
                progressive=frame.progressive,
                scans=scans,
                orientation=turned or 1,
                padded_pixels=frame.padded_pixels,
                coefficient_bytes=frame.coefficient_bytes if kept else 0,
                parts=tuple(parts),
            )
        if marker in _OTHER_FRAMES:
            raise InvalidInput(
                field,
                "a JPEG with arithmetic, lossless or hierarchical coding; save it as a baseline or "
                "progressive JPEG",
            )
        (length,) = struct.unpack_from(">H", data, start + 2)
        stop = start + 2 + length
        if marker in _UNEXPECTED or length < 2 or stop > len(data):
            raise InvalidInput(field, _DAMAGED)
        if marker in _FRAMES:
            if frame is not None:
                raise InvalidInput(field, _DAMAGED)
            frame = _frame(data[start + 4 : stop], marker == 0xC2, field)
        elif marker == _SOS:
            if frame is None or length < 6:
                raise InvalidInput(field, _DAMAGED)
            scans += 1
            interleaved = interleaved and data[start + 4] == len(frame.sampling)
            # The coded data reaches to the next marker.
            stop = _next_marker(data, stop, field)
        elif marker == _APP1 and turned is None and data[start + 4 : start + 10] == b"Exif\0\0":
            turned = orientation(data[start + 4 : stop])
        if marker in _NEEDED:
            parts.append((start, stop))
        place = stop
    raise InvalidInput(field, f"a JPEG of more than {MAX_SEGMENTS} segments; save it anew")


def _next_marker(data: bytes, place: int, field: str) -> int:
    """Offset of the next marker: decoders skip fill bytes and what lies between segments."""
    match = _MARKER.search(data, place)
    # Markers below 0xC0 are reserved, and decoders differ in what they do about them.
    if match is None or match[0][1] < 0xC0:
        raise InvalidInput(field, _DAMAGED)
    return match.start()


def _frame(body: bytes, progressive: bool, field: str) -> _Frame:
    bits, height, width, count = struct.unpack_from(">BHHB", body)
    if bits != 8:
        raise InvalidInput(field, f"{bits} bits a channel; expected 8 bits a channel")
    if count not in (1, 3, 4):
        raise InvalidInput(field, f"a JPEG of {count} channels; expected 1, 3 or 4")
    if not width or not height or len(body) != 6 + 3 * count:
        raise InvalidInput(field, _DAMAGED)
    factors = [body[7 + 3 * component] for component in range(count)]
    sampling = tuple((factor >> 4, factor & 15) for factor in factors)
    if not all(1 <= h <= 4 and 1 <= v <= 4 for h, v in sampling):
        raise InvalidInput(field, _DAMAGED)
    return _Frame(width, height, progressive, sampling)


# --- PNG (W3C, third edition) -------------------------------------------------------------------


def _png(data: bytes, field: str) -> ImageHeader:
    parts: list[tuple[int, int]] = []
    width = height = bits = colour = interlace = 0
    transparent = animated = complete = False
    turned = 1
    previous = b""
    place = 8
    for number in range(MAX_SEGMENTS):
        length, kind = struct.unpack_from(">I4s", data, place)
        stop = place + 12 + length
        if stop > len(data) or (number == 0) != (kind == b"IHDR"):
            raise InvalidInput(field, _DAMAGED)
        if kind == b"IHDR":
            width, height, bits, colour, compression, filters, interlace = struct.unpack_from(
                ">IIBBBBB", data, place + 8
            )
            if length != 13 or compression or filters or interlace > 1 or not width * height:
                raise InvalidInput(field, _DAMAGED)
            if colour not in _PNG_COLOURS or bits not in _PNG_COLOURS[colour][1]:
                raise InvalidInput(field, _DAMAGED)
        elif kind == b"IDAT":
            if complete and previous != kind:
                raise InvalidInput(field, _DAMAGED)
            complete = True
        elif kind == b"tRNS":
            transparent = True
        elif kind == b"acTL":
            # Behind the pixels it has no meaning.
            animated = animated or not complete
        elif kind == b"eXIf":
            turned = orientation(data[place + 8 : stop - 4])
        elif kind not in (b"PLTE", b"IEND") and not kind[0] & 0x20:
            # An upper-case first letter: the pixels cannot be understood without it.
            raise InvalidInput(field, _DAMAGED)
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            parts.append((place, stop))
        if kind == b"IEND":
            if not complete:
                raise InvalidInput(field, _DAMAGED)
            return ImageHeader(
                format="PNG",
                width=width,
                height=height,
                channels=_PNG_COLOURS[colour][0],
                bits=bits,
                alpha=transparent or colour in (4, 6),
                animated=animated,
                palette=colour == _PNG_PALETTE,
                interlaced=bool(interlace),
                orientation=turned,
                padded_pixels=width * height,
                parts=tuple(parts),
            )
        previous, place = kind, stop
    raise InvalidInput(field, f"a PNG of more than {MAX_SEGMENTS} chunks; save it anew")


# --- WebP (RFC 9649) ----------------------------------------------------------------------------

_ANIMATION, _ALPHA = 0x02, 0x10


@dataclass(frozen=True)
class _Chunk:
    kind: bytes
    start: int
    stop: int
    body: bytes


@dataclass(frozen=True)
class _Bitstream:
    width: int
    height: int
    alpha: bool


def _webp(data: bytes, field: str) -> ImageHeader:
    chunks = list(_chunks(data, field))
    extended = bool(chunks) and chunks[0].kind == b"VP8X"
    if not extended:
        # Of the simple file format, the first chunk is the image, and nothing else is read.
        chunks = chunks[:1]
    kinds = [chunk.kind for chunk in chunks]
    turned = next((orientation(chunk.body) for chunk in chunks if chunk.kind == b"EXIF"), 1)
    if extended:
        flags = chunks[0].body[0]
        width, height = _uint24(chunks[0].body, 4) + 1, _uint24(chunks[0].body, 7) + 1
        if flags & _ANIMATION or b"ANIM" in kinds or b"ANMF" in kinds:
            return ImageHeader("WebP", width, height, channels=4, bits=8, animated=True)
    needed = [chunk for chunk in chunks if chunk.kind in (b"VP8X", b"ALPH", b"VP8 ", b"VP8L")]
    image = _bitstream(needed[-1], field) if needed else None
    order = [chunk.kind for chunk in needed]
    if (
        image is None
        or order[extended:-1] not in ([], [b"ALPH"])
        or order[-2:] == [b"ALPH", b"VP8L"]
    ):
        raise InvalidInput(field, _DAMAGED)
    alpha = image.alpha or b"ALPH" in order
    if extended:
        if (width, height) != (image.width, image.height):
            raise InvalidInput(field, _DAMAGED)
        if alpha and not flags & _ALPHA:
            raise InvalidInput(
                field, "a WebP whose header denies the alpha channel that it has; save it anew"
            )
    return ImageHeader(
        format="WebP",
        width=image.width,
        height=image.height,
        channels=4 if alpha else 3,
        bits=8,
        alpha=alpha,
        orientation=turned,
        padded_pixels=image.width * image.height,
        parts=tuple((chunk.start, chunk.stop) for chunk in needed),
    )


def _chunks(data: bytes, field: str) -> Iterator[_Chunk]:
    (size,) = struct.unpack_from("<I", data, 4)
    end = 8 + size
    place, number = 12, 0
    while place < end:
        kind, length = struct.unpack_from("<4sI", data, place)
        stop = place + 8 + length + length % 2
        number += 1
        if stop > min(end, len(data)) or number > MAX_SEGMENTS:
            raise InvalidInput(field, _DAMAGED)
        # Of pixels, the first bytes say all that is asked here.
        head = length if kind == b"EXIF" else min(length, 10)
        yield _Chunk(kind, place, stop, data[place + 8 : place + 8 + head])
        place = stop


def _bitstream(chunk: _Chunk, field: str) -> _Bitstream:
    body = chunk.body
    if chunk.kind == b"VP8 " and not body[0] & 1 and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", body, 6)
        image = _Bitstream(width & 0x3FFF, height & 0x3FFF, alpha=False)
    elif chunk.kind == b"VP8L" and body[0] == 0x2F:
        (packed,) = struct.unpack_from("<I", body, 1)
        image = _Bitstream(
            (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1, alpha=bool(packed >> 28 & 1)
        )
    else:
        raise InvalidInput(field, _DAMAGED)
    if not image.width or not image.height:
        raise InvalidInput(field, _DAMAGED)
    return image


def _uint24(data: bytes, place: int) -> int:
    low, high = struct.unpack_from("<HB", data, place)
    return int(low | high << 16)
