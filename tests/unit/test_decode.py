from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from firewall.bundle.spec import InputSpec, Preprocessing
from firewall.decoding.decode import MAX_SCAN_PIXELS, Target, decode_image, plan_decoding
from firewall.decoding.pixels import pixels_hash, write_png
from firewall.errors import InvalidInput
from tests.support.image_files import animation, bomb, chunk, encoded, many_scans

SPEC = InputSpec(channels=3, height=8, width=8)
RESIZE = Preprocessing(resize=10)
TARGET = Target.of(SPEC, RESIZE)


def with_alpha(alpha: int, kind: str = "PNG", **options: Any) -> bytes:
    pixels = np.full((8, 8, 4), 255, np.uint8)
    pixels[3, 4, 3] = alpha
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def with_transparent_entry(used: bool) -> bytes:
    """A palette image with a transparent entry."""
    image = Image.new("P", (8, 8))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((2, 2), 0 if used else 1)
    pixels = np.asarray(image).copy()
    pixels[:] = 1
    if used:
        pixels[2, 2] = 0
    image.putdata(list(pixels.ravel()))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_image_of_the_models_size_is_taken_pixel_for_pixel(kind: str) -> None:
    data = encoded(8, 8, kind, lossless=True)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode_image(data, SPEC, RESIZE), expected)


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (9, 9), (3, 200), (1, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_size_becomes_the_models(width: int, height: int, kind: str) -> None:
    assert decode_image(encoded(width, height, kind), SPEC, RESIZE).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("CMYK", "JPEG"), ("L", "JPEG")]
)
def test_other_modes_become_the_models_channels(mode: str, kind: str) -> None:
    data = encoded(8, 8, kind, mode)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode_image(data, SPEC, RESIZE), expected)
    grey = InputSpec(channels=1, height=8, width=8)
    assert decode_image(data, grey, RESIZE).shape == (8, 8, 1)


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_orientation_is_applied_as_pillow_does(kind: str, value: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = value
    data = encoded(8, 8, kind, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(decode_image(data, SPEC, RESIZE), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_pixels_are_refused_and_an_opaque_alpha_channel_is_not(
    kind: str, channels: int
) -> None:
    spec = InputSpec(channels=channels, height=8, width=8)
    decoded = decode_image(with_alpha(255, kind, lossless=True, exact=True), spec, RESIZE)
    assert (decoded == 255).all()
    # A lossy or premultiplied comparison could miss a hair of transparency.
    with pytest.raises(InvalidInput, match="transparent pixels; flatten the image"):
        decode_image(with_alpha(254, kind, lossless=True, exact=True), spec, RESIZE)


def test_transparent_entry_of_a_palette_counts_where_it_is_used() -> None:
    assert (decode_image(with_transparent_entry(False), SPEC, RESIZE) == [40, 50, 60]).all()
    with pytest.raises(InvalidInput, match="transparent pixels"):
        decode_image(with_transparent_entry(True), SPEC, RESIZE)


def test_model_of_four_channels_sees_alpha() -> None:
    spec = InputSpec(channels=4, height=8, width=8)
    assert decode_image(with_alpha(7), spec, RESIZE)[3, 4, 3] == 7


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    with pytest.raises(InvalidInput, match="an animation; send the frame"):
        decode_image(animation(kind), SPEC, RESIZE)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encoded(40, 40, "JPEG")[:300], "damaged or truncated"),
        (encoded(40, 40)[:200], "damaged or truncated"),
        (bomb(), "20000 x 20000 pixels; at most 25000000 are decoded"),
        (encoded(1, 60_000), "1 x 60000 pixels, which resizing would make 10 x 600000"),
        (bomb(16, bits=16, colour=2), "16 bits a channel; expected 8"),
        (many_scans(1000, 1000, 291), r"1000 x 1000 pixels in 301 scans"),
    ],
)
def test_refused_images(data: bytes, words: str) -> None:
    limit = 5_000_000 if "resizing" in words else 25_000_000
    with pytest.raises(InvalidInput, match=words) as caught:
        decode_image(data, SPEC, RESIZE, field="images[2]", max_pixels=limit)
    assert caught.value.field == "images[2]"


def test_scans_within_the_limit_are_decoded() -> None:
    data = many_scans(1000, 1000, 40)
    assert not decode_image(data, SPEC, RESIZE).any()
    # 1000 rounds up to 1008: 4:2:0 codes 16 x 16 pixels at a time.
    work = 1008 * 1008 * 50
    assert work < MAX_SCAN_PIXELS
    decode_image(data, SPEC, RESIZE, max_scan_pixels=work)
    with pytest.raises(InvalidInput, match="50 scans"):
        decode_image(data, SPEC, RESIZE, max_scan_pixels=work - 1)


def test_metadata_is_not_parsed() -> None:
    """Each profile inflates to a megabyte, which Pillow would do before it looks at a pixel."""
    good = encoded(8, 8)
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 20), 9))
    text = chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(1 << 21), 9))
    data = good[:33] + profile * 50 + text + good[33:]
    with pytest.raises(ValueError, match="MAX_TEXT_CHUNK"):
        Image.open(io.BytesIO(data))
    assert np.array_equal(decode_image(data, SPEC, RESIZE), decode_image(good, SPEC, RESIZE))


def test_bytes_behind_the_pixels_are_not_inflated() -> None:
    """A single pixel, and a gigabyte of zeros in the same stream."""
    packer = zlib.compressobj(9)
    zeros = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    header = bomb(1)[:33]
    data = header + chunk(b"IDAT", zeros) + chunk(b"IEND", b"")
    assert decode_image(data, SPEC, RESIZE).shape == (8, 8, 3)


def test_plan_counts_what_draft_mode_saves() -> None:
    baseline = plan_decoding(encoded(400, 400, "JPEG"), TARGET, field="x")
    assert baseline.scale == 8
    progressive = plan_decoding(encoded(400, 400, "JPEG", progressive=True), TARGET, field="x")
    assert progressive.needed_bytes > baseline.needed_bytes + 2 * 400 * 400
    assert progressive.seconds > baseline.seconds


def test_plan_counts_what_resizing_takes() -> None:
    thin = plan_decoding(encoded(1, 2000), TARGET, field="x")
    assert thin.needed_bytes > 4 * 10 * 20_000


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("progressive", [False, True])
def test_every_truncation_is_invalid_input(kind: str, progressive: bool) -> None:
    data = encoded(24, 24, kind, progressive=progressive)
    for length in range(0, len(data), 7):
        with pytest.raises(InvalidInput):
            decode_image(data[:length], SPEC, RESIZE)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP"]),
    st.booleans(),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
)
def test_damage_is_refused_or_decoded_and_never_anything_else(
    kind: str, progressive: bool, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(encoded(24, 24, kind, progressive=progressive))
    for place, value in changes:
        data[int(place * len(data))] = value
    try:
        assert decode_image(bytes(data), SPEC, RESIZE).shape == (8, 8, 3)
    except InvalidInput as error:
        assert error.field == "image"


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF"]), st.binary(max_size=200))
def test_random_bytes_are_invalid_input(signature: bytes, rest: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode_image(signature + rest, SPEC, RESIZE)


def test_hash_is_of_shape_and_bytes() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    # printf '2x4x3:' and the bytes 0 to 23, through sha256sum.
    assert pixels_hash(pixels) == (
        "868fa6b0457a8e99aed82021676c1247fae078a63bd96a816a9da9c4c45d6d77"
    )
    assert pixels_hash(pixels) != pixels_hash(pixels.reshape(4, 2, 3))
    turned = np.ascontiguousarray(pixels.transpose(1, 0, 2)).transpose(1, 0, 2)
    assert pixels_hash(turned) == pixels_hash(pixels)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_written_pixels_are_read_back(channels: int, tmp_path: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    path = write_png(pixels, tmp_path)
    assert path.name == f"{pixels_hash(pixels)}.png"
    assert np.array_equal(np.asarray(Image.open(path)).reshape(pixels.shape), pixels)
    assert write_png(pixels, tmp_path) == path
