"""Between pixels and the tensor that clients send. Numpy only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.bundle.spec import InputSpec
from firewall.errors import InvalidInput

NUMPY_DTYPES: dict[str, type[Any]] = {
    "UINT8": np.uint8,
    "FP16": np.float16,
    "FP32": np.float32,
}


def to_wire(pixels: npt.NDArray[np.uint8], spec: InputSpec) -> npt.NDArray[Any]:
    """[N, H, W, C] uint8 pixels to what a client would send, [N, *spec.shape]."""
    if spec.datatype != "UINT8":
        images = pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        return images_to_wire(images, spec)
    wire = pixels[..., ::-1] if spec.channel_order == "BGR" else pixels
    if spec.layout == "NCHW":
        wire = wire.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(wire)


def images_to_wire(images: npt.NDArray[np.float32], spec: InputSpec) -> npt.NDArray[Any]:
    """[N, C, H, W] float32 in [0, 1] to what a client would send, [N, *spec.shape]."""
    x = images[:, ::-1] if spec.channel_order == "BGR" else images
    if spec.mean is not None and spec.std is not None:
        mean, std = (np.array(part, np.float32)[:, None, None] for part in (spec.mean, spec.std))
        x = (x - mean) / std
    elif (spec.low, spec.high) != (0.0, 1.0):
        x = x * np.float32(spec.high - spec.low) + np.float32(spec.low)
    if spec.datatype == "UINT8":
        x = np.round(x)
    wire = x.astype(NUMPY_DTYPES[spec.datatype], copy=False)
    if spec.layout == "NHWC":
        wire = wire.transpose(0, 2, 3, 1)
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
    if spec.channel_order == "BGR":
        change = change[:, ::-1]
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
