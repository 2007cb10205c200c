from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from firewall.decoding.exif import orientation
from firewall.decoding.image_header import MAX_SEGMENTS, read_header, strip
from firewall.errors import InvalidInput
from tests.support.image_files import animation, bomb, chunk, encoded, many_scans, segments

SIGNATURES = [
    b"",
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\x40\0\0\0WEBP",
    b"\xff\xd8\xff\xda",
]
KINDS = ["JPEG", "PNG", "WEBP"]


def turned(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = "a maker of cameras"
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"lossless": True}])
def test_header_agrees_with_pillow(kind: str, mode: str, options: dict[str, Any]) -> None:
    if (kind == "JPEG" and mode in ("LA", "P", "RGBA")) or (kind == "PNG" and mode == "CMYK"):
        pytest.skip("not a mode of this format")
    data = encoded(37, 21, kind, mode, exif=turned(6), icc_profile=b"profile" * 20_000, **options)
    header = read_header(data, "x")
    with Image.open(io.BytesIO(data)) as image:
        assert (header.width, header.height) == image.size
        assert header.orientation == image.getexif()[0x0112]
        assert header.format.upper() == image.format
        assert header.progressive == bool(image.info.get("progressive"))
        assert header.alpha == image.has_transparency_data
        assert header.palette == (image.mode == "P")
        assert not header.animated
        if kind == "JPEG":
            assert (header.channels, header.bits) == (len(image.getbands()), 8)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "P", "RGBA"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("progressive", [False, True])
def test_stripped_file_has_the_same_pixels_and_no_metadata(
    kind: str, mode: str, progressive: bool
) -> None:
    if (kind == "JPEG" and mode in ("P", "RGBA")) or (kind == "PNG" and mode == "CMYK"):
        pytest.skip("not a mode of this format")
    data = encoded(
        37, 21, kind, mode, exif=turned(3), icc_profile=b"SECRET" * 99, progressive=progressive
    )
    stripped = strip(data, read_header(data, "x"))
    assert b"a maker of cameras" in data
    assert b"a maker of cameras" not in stripped
    with Image.open(io.BytesIO(data)) as full, Image.open(io.BytesIO(stripped)) as bare:
        assert full.mode == bare.mode
        assert np.array_equal(np.asarray(full.convert("RGBA")), np.asarray(bare.convert("RGBA")))
        assert not {"icc_profile", "exif"} & set(bare.info)


def test_scans_are_counted_and_thumbnails_are_not() -> None:
    assert read_header(encoded(40, 40, "JPEG"), "x").scans == 1
    assert read_header(many_scans(40, 40, 0), "x").scans == 10
    header = read_header(many_scans(40, 40, 500), "x")
    assert (header.scans, header.progressive) == (510, True)
    start, *rest = segments(encoded(40, 40, "JPEG"))
    thumbnail = many_scans(16, 16, 20)
    held = b"\xff\xe1" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail
    assert read_header(start + held + b"".join(rest), "x").scans == 1


def test_work_counts_whole_blocks_of_a_thin_image() -> None:
    header = read_header(encoded(1, 1600, "JPEG", subsampling=2, progressive=True), "x")
    assert header.pixels == 1600
    assert header.work == pytest.approx(16 * 1600 * header.scans / 1e6)
    assert header.coefficient_bytes == 16 * 1600 * 3  # 4:2:0 has 1.5 samples of 2 bytes a pixel


def test_decoded_bytes() -> None:
    assert read_header(encoded(100, 50, "PNG"), "x").decoded_bytes() == 4 * 5000
    assert read_header(encoded(100, 50, "PNG", "L"), "x").decoded_bytes() == 5000
    assert read_header(encoded(64, 64, "JPEG"), "x").decoded_bytes(4) == 4 * 16 * 16
    header = read_header(encoded(64, 64, "JPEG", progressive=True, subsampling=0), "x")
    assert header.decoded_bytes(4) == 4 * 16 * 16 + 6 * 64 * 64
    assert read_header(encoded(100, 50, "WEBP"), "x").decoded_bytes() == 16 * 5000


def test_animations_are_seen() -> None:
    assert read_header(animation("PNG"), "x").animated
    assert read_header(animation("WEBP"), "x").animated


def test_interlaced_png_and_bits() -> None:
    data = bytearray(bomb(16))
    body = data[12:28] + b"\x01"
    assert not read_header(bytes(data), "x").interlaced
    data[8:33] = chunk(body[:4], body[4:])
    assert read_header(bytes(data), "x").interlaced
    assert read_header(bomb(16, bits=16, colour=6), "x").bits == 16


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "neither a JPEG, a PNG nor a WebP file"),
        (b"GIF89a" + bytes(50), "neither a JPEG, a PNG nor a WebP file"),
        (b"\xff\xd8\xff" + bytes(1000), "damaged or truncated"),
        (encoded(8, 8, "JPEG").replace(b"\xff\xc0", b"\xff\xc9"), "arithmetic"),
        (encoded(8, 8, "JPEG").replace(b"\xff\xc0", b"\xff\xc3"), "lossless"),
        (encoded(8, 8, "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), "12 bits"),
        (b"\xff\xd8" + b"\xff\xe0\0\x02" * (MAX_SEGMENTS + 1), "segments"),
        (bomb(8)[:33] + chunk(b"teXt", b"") * MAX_SEGMENTS, "chunks"),
        (bomb(8)[:33] + chunk(b"ABCD", b"") + bomb(8)[33:], "damaged"),
        (bomb(8)[:-12] + chunk(b"teXt", b"") + bomb(8)[33:], "damaged"),
    ],
)
def test_refused_files(data: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        read_header(data, "images[3]")
    assert caught.value.field == "images[3]"


def test_webp_that_denies_its_alpha_channel_is_refused() -> None:
    data = bytearray(encoded(16, 16, "WEBP", "RGBA"))
    assert read_header(bytes(data), "x").alpha
    assert data[12:16] == b"VP8X"
    data[20] &= ~0x10
    with pytest.raises(InvalidInput, match="denies the alpha channel"):
        read_header(bytes(data), "x")


@pytest.mark.parametrize(
    "data",
    [
        encoded(20, 20, "JPEG", exif=turned(6)),
        encoded(20, 20, "JPEG", progressive=True, restart_marker_rows=1),
        encoded(20, 20, "PNG", "P"),
        encoded(20, 20, "WEBP", exif=turned(6)),
        encoded(20, 20, "WEBP", "RGBA", lossless=True),
    ],
)
def test_every_truncation_is_invalid_input(data: bytes) -> None:
    read_header(data, "x")
    for length in range(len(data)):
        with pytest.raises(InvalidInput):
            read_header(data[:length], "x")


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SIGNATURES), st.binary(max_size=300))
def test_random_bytes_are_a_header_or_invalid_input(signature: bytes, rest: bytes) -> None:
    try:
        read_header(signature + rest, "x")
    except InvalidInput as error:
        assert error.field == "x"


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from(KINDS),
    st.sampled_from(["L", "RGB"]),
    st.integers(1, 8),
    st.booleans(),
)
def test_header_agrees_with_pillow_on_any_image(
    width: int, height: int, kind: str, mode: str, turn: int, progressive: bool
) -> None:
    data = encoded(width, height, kind, mode, exif=turned(turn), progressive=progressive)
    header = read_header(data, "x")
    with Image.open(io.BytesIO(data)) as image:
        assert (header.width, header.height) == image.size
        assert header.orientation == image.getexif()[0x0112]


@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_in_either_byte_order(order: str) -> None:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entries = struct.pack(f"{order}HHHIHH", 1, 0x0112, 3, 1, 8, 0)
    assert orientation(b"Exif\0\0" + mark + struct.pack(f"{order}I", 8) + entries) == 8
    assert orientation(mark + struct.pack(f"{order}I", 1 << 30) + entries) == 1


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([b"II*\0", b"MM\0*"]), st.binary(max_size=200))
def test_random_exif_is_an_orientation(mark: bytes, rest: bytes) -> None:
    assert 1 <= orientation(mark + rest) <= 8
