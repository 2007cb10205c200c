from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from firewall.bundle.spec import InputSpec, Preprocessing
from firewall.errors import InvalidInput
from firewall.guard.wire_input import WireInput
from firewall.screening.preprocess import check_values, decode_image, limits, to_wire

SPEC = InputSpec(channels=3, height=8, width=8)
RESIZE = Preprocessing(resize=10)

SPECS = [
    InputSpec(channels=3, height=8, width=8),
    InputSpec(channels=3, height=8, width=8, layout="NHWC"),
    InputSpec(channels=3, height=8, width=8, datatype="UINT8", high=255.0, layout="NHWC"),
    InputSpec(channels=3, height=8, width=8, low=-1.0),
    InputSpec(channels=3, height=8, width=8, datatype="FP16"),
    InputSpec(channels=3, height=8, width=8, mean=(0.485, 0.456, 0.406), std=(0.2, 0.3, 0.4)),
    InputSpec(channels=1, height=8, width=8),
]


def encoded(width: int, height: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    rng = np.random.default_rng(0)
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    image = Image.fromarray(rng.integers(0, 256, shape, np.uint8), mode=None)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def bomb(side: int = 20_000) -> bytes:
    """A PNG of side x side pixels in a few kilobytes: its header and rows of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * 200), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("spec", SPECS)
def test_pixels_to_wire_to_image_batch_is_the_pixels(spec: InputSpec) -> None:
    """The client's mapping and the graph's are each other's inverse."""
    shape = (4, spec.height, spec.width, spec.channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    wire = to_wire(pixels, spec)
    assert wire.shape == (4, *spec.shape)
    check_values(wire, spec, "x")
    x = WireInput(spec)(torch.from_numpy(wire))
    expected = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    assert torch.allclose(x, expected, atol=1e-3 if spec.datatype == "FP16" else 1e-6)
    assert np.allclose(WireInput(spec).back(x).numpy(), wire, atol=1e-3)


def test_an_image_of_the_models_size_is_taken_pixel_for_pixel() -> None:
    data = encoded(8, 8)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode_image(data, SPEC, RESIZE), expected)


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (9, 9), (3, 200), (1, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_every_size_becomes_the_models(width: int, height: int, kind: str) -> None:
    assert decode_image(encoded(width, height, kind), SPEC, RESIZE).shape == (8, 8, 3)


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_other_modes_become_the_models_channels(mode: str) -> None:
    assert decode_image(encoded(8, 8, mode=mode), SPEC, RESIZE).shape == (8, 8, 3)
    grey = InputSpec(channels=1, height=8, width=8)
    assert decode_image(encoded(8, 8, mode=mode), grey, RESIZE).shape == (8, 8, 1)


def test_a_camera_held_upright_gives_an_upright_image() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    turned = decode_image(buffer.getvalue(), SPEC, RESIZE)
    assert (turned[:, 7] == 255).all()
    assert (turned[:, :7] == 0).all()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "neither a JPEG nor a PNG"),
        (b"GIF89a" + bytes(50), "neither a JPEG nor a PNG"),
        (encoded(40, 40, "JPEG")[:300], "damaged or truncated"),
        (encoded(40, 40, "JPEG")[:5], "damaged or truncated"),
        (encoded(40, 40)[:200], "damaged or truncated"),
        (encoded(40, 40)[:20], "damaged or truncated"),
        (b"\xff\xd8\xff" + bytes(1000), "damaged or truncated"),
        (bomb(), "20000 x 20000 pixels; at most 50000000 are decoded"),
        (encoded(1, 60_000), "1 x 60000 pixels, which resizing would make 10 x 600000"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, words: str) -> None:
    limit = 5_000_000 if "resizing" in words else 50_000_000
    with pytest.raises(InvalidInput, match=words) as caught:
        decode_image(data, SPEC, RESIZE, field="images[2]", max_pixels=limit)
    assert caught.value.field == "images[2]"


def test_random_damage_is_refused_or_decoded_and_never_anything_else() -> None:
    rng = np.random.default_rng(1)
    for kind in ("PNG", "JPEG"):
        good = encoded(24, 24, kind)
        for _ in range(300):
            data = bytearray(good)
            for place in rng.integers(0, len(data), 4):
                data[place] = rng.integers(0, 256)
            try:
                assert decode_image(bytes(data), SPEC, RESIZE).shape == (8, 8, 3)
            except InvalidInput:
                continue


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.5, -0.2])
def test_values_that_are_no_images_are_refused(bad: float) -> None:
    wire = np.full((1, 3, 8, 8), 0.5, np.float32)
    wire[0, 1, 2, 3] = bad
    with pytest.raises(InvalidInput, match="expected"):
        check_values(wire, SPEC, "x")


def test_limits_follow_the_input() -> None:
    assert limits(SPECS[0]) == [(0.0, 1.0)]
    assert limits(SPECS[5])[1] == pytest.approx((-0.456 / 0.3, (1 - 0.456) / 0.3))


def test_no_channel_hides_in_the_range_of_another() -> None:
    """Red may go further up than blue on a normalised wire; blue may not."""
    spec = SPECS[5]
    wire = np.zeros((1, 3, 8, 8), np.float32)
    wire[0, 0] = (1 - 0.485) / 0.2
    check_values(wire, spec, "x")
    wire[0, 2] = (1 - 0.485) / 0.2
    with pytest.raises(InvalidInput, match="in channel 2"):
        check_values(wire, spec, "x")
