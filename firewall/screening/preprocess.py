"""From an encoded photograph to a row on the wire. Numpy and Pillow only."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from firewall.bundle.spec import InputSpec, Preprocessing
from firewall.errors import InvalidInput

#: Pixels that are decoded at most; a header that promises more is refused before any decoding.
MAX_PIXELS = 50_000_000

#: Modes that convert to RGB or L without losing their meaning.
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
_COLOURS = {1: "L", 3: "RGB", 4: "RGBA"}

NUMPY_DTYPES: dict[str, type[Any]] = {
    "UINT8": np.uint8,
    "FP16": np.float16,
    "FP32": np.float32,
}


def decode_image(
    data: bytes,
    spec: InputSpec,
    preprocessing: Preprocessing,
    *,
    field: str = "image",
    max_pixels: int = MAX_PIXELS,
) -> npt.NDArray[np.uint8]:
    """Decode a JPEG or PNG and bring it to the model's size.

    EXIF orientation is applied and transparency dropped. The shorter side is resized to
    `preprocessing.resize` (bicubic) and the centre is cropped, unless the image already has the
    model's size: then it is taken pixel for pixel.

    Returns:
        [H, W, C] uint8.

    Raises:
        InvalidInput: naming `field`: not an image, damaged, or too large.

    """
    # The formats' own classes: Image.open would try every format, and warns by its own limits.
    try:
        image: Image.Image
        if data[:3] == b"\xff\xd8\xff":
            image = JpegImageFile(io.BytesIO(data))
        elif data[:8] == b"\x89PNG\r\n\x1a\n":
            image = PngImageFile(io.BytesIO(data))
        else:
            raise InvalidInput(field, "neither a JPEG nor a PNG")
        width, height = image.size
        if width * height > max_pixels:
            raise InvalidInput(
                field, f"{width} x {height} pixels; at most {max_pixels} are decoded"
            )
        resized = _resized(width, height, spec, preprocessing)
        if resized[0] * resized[1] > max_pixels:
            raise InvalidInput(
                field,
                f"{width} x {height} pixels, which resizing would make {resized[0]} x "
                f"{resized[1]}; at most {max_pixels}",
            )
        if image.mode not in _MODES:
            raise InvalidInput(field, f"pixel format {image.mode!r}; expected 8 bits a channel")
        if (width, height) != (spec.width, spec.height):
            # Lets the JPEG decoder skip detail that the resize would drop; ignored by PNG.
            image.draft(None, (2 * preprocessing.resize, 2 * preprocessing.resize))
        image.load()
        image = ImageOps.exif_transpose(image).convert(_COLOURS.get(spec.channels, "RGB"))
    except InvalidInput:
        raise
    except Exception as error:
        # Pillow raises a dozen kinds on damaged files; none of their texts is for a client.
        raise InvalidInput(field, "a damaged or truncated image") from error
    return fit(image, spec, preprocessing)


def fit(image: Image.Image, spec: InputSpec, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Resize and centre-crop a decoded image: [H, W, C] uint8."""
    if image.size != (spec.width, spec.height):
        size = _resized(*image.size, spec, preprocessing)
        image = image.resize(size, Image.Resampling.BICUBIC)
        left = (size[0] - spec.width) // 2
        top = (size[1] - spec.height) // 2
        image = image.crop((left, top, left + spec.width, top + spec.height))
    pixels = np.asarray(image, np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _resized(
    width: int, height: int, spec: InputSpec, preprocessing: Preprocessing
) -> tuple[int, int]:
    """Size before the centre is cropped: a thin image becomes very long."""
    if (width, height) == (spec.width, spec.height):
        return width, height
    scale = max(
        preprocessing.resize / max(1, min(width, height)), spec.width / width, spec.height / height
    )
    return max(spec.width, round(width * scale)), max(spec.height, round(height * scale))


def to_wire(pixels: npt.NDArray[np.uint8], spec: InputSpec) -> npt.NDArray[Any]:
    """[N, H, W, C] uint8 pixels to what a client would send, [N, *spec.shape]."""
    if spec.datatype == "UINT8" and (spec.low, spec.high) == (0.0, 255.0):
        wire = pixels
    else:
        x: npt.NDArray[np.float32] = pixels.astype(np.float32) / np.float32(255)
        if spec.mean is not None and spec.std is not None:
            mean: npt.NDArray[np.float32] = np.array(spec.mean, np.float32)
            std: npt.NDArray[np.float32] = np.array(spec.std, np.float32)
            x = (x - mean) / std
        elif (spec.low, spec.high) != (0.0, 1.0):
            x = x * np.float32(spec.high - spec.low) + np.float32(spec.low)
        if spec.datatype == "UINT8":
            x = np.round(x)
        wire = x.astype(NUMPY_DTYPES[spec.datatype])
    if spec.layout == "NCHW":
        wire = wire.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(wire)


def add_to_wire(
    row: npt.NDArray[Any], change: npt.NDArray[np.float32], spec: InputSpec
) -> npt.NDArray[Any]:
    """One row with changes that are given where values lie in [0, 1].

    Args:
        row: [*spec.shape] of the wire's datatype.
        change: [N, C, H, W].
        spec: of the wire.

    Returns:
        [N, *spec.shape] of the wire's datatype. Bytes are rounded and kept in range; floats may
        leave it, and the graph brings them back.

    """
    if spec.std is not None:
        scaled = change / np.array(spec.std, np.float32)[:, None, None]
    else:
        scaled = change * np.float32(spec.high - spec.low)
    if spec.layout == "NHWC":
        scaled = scaled.transpose(0, 2, 3, 1)
    changed = row[None].astype(np.float32) + scaled
    if spec.datatype == "UINT8":
        changed = changed.round().clip(0, 255)
    return np.ascontiguousarray(changed.astype(NUMPY_DTYPES[spec.datatype]))


def limits(spec: InputSpec) -> list[tuple[float, float]]:
    """Least and greatest value on the wire that is an image, by channel; one pair if all share."""
    if spec.mean is None or spec.std is None:
        return [(spec.low, spec.high)]
    return [((0 - m) / s, (1 - m) / s) for m, s in zip(spec.mean, spec.std, strict=True)]


def check_values(wire: npt.NDArray[Any], spec: InputSpec, field: str) -> None:
    """Refuse values that are no image's.

    Raises:
        InvalidInput: NaN, infinity, or outside the input's range.

    """
    if spec.datatype == "UINT8" and (spec.low, spec.high) == (0.0, 255.0):
        return
    pairs = limits(spec)
    axis = 1 if spec.layout == "NCHW" else 3
    for channel, (low, high) in enumerate(pairs):
        part = wire if len(pairs) == 1 else wire.take(channel, axis)
        # Room for rounding on the client's side: a thousandth of the range.
        slack = (high - low) * 1e-3
        # The ufuncs themselves: methods of arrays go through Python.
        least = float(np.minimum.reduce(part, axis=None))
        greatest = float(np.maximum.reduce(part, axis=None))
        if not (math.isfinite(least) and math.isfinite(greatest)):
            raise InvalidInput(field, "holds NaN or infinity; expected finite values")
        if least < low - slack or greatest > high + slack:
            where = "" if len(pairs) == 1 else f" in channel {channel}"
            raise InvalidInput(
                field,
                f"values from {least:g} to {greatest:g}{where}; expected values in "
                f"[{low:g}, {high:g}]",
            )
