"""Input tensors as requests carry them, and their validation against a model's input."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.bundle.spec import InputSpec
from firewall.errors import InvalidInput
from firewall.screening.preprocess import NUMPY_DTYPES


@dataclass(frozen=True)
class Limits:
    """What one request may hold.

    Attributes:
        rows: of a batch.

    """

    rows: int = 64


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A dense tensor of a whole batch.

    Attributes:
        header: name of the request field that holds datatype and shape, for errors.
        body: name of the request field that holds the data, for errors.
        datatype: of the Open Inference Protocol, such as `FP32`.
        shape: the batch first.
        data: row-major little-endian bytes, or the values as numbers.

    """

    header: str
    body: str
    datatype: str
    shape: Sequence[int]
    data: bytes | memoryview | Sequence[float] | npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """Encoded images, one a row.

    Attributes:
        field: name of the request field, for errors.
        images: JPEG, PNG or WebP files.

    """

    field: str
    images: Sequence[bytes]


Batch = RawTensor | EncodedImages


def to_rows(tensor: RawTensor, spec: InputSpec, limits: Limits) -> npt.NDArray[Any]:
    """A tensor as an array [N, *input shape]; raw bytes are not copied. Values are unchecked.

    Raises:
        InvalidInput: naming the field, the value and what is expected.

    """
    shape = _checked_shape(tensor, spec, limits)
    dtype = np.dtype(NUMPY_DTYPES[spec.datatype]).newbyteorder("<")
    data = tensor.data
    if isinstance(data, (bytes, memoryview)):
        expected = math.prod(shape) * dtype.itemsize
        if len(data) != expected:
            raise InvalidInput(
                tensor.body,
                f"{len(data)} bytes; shape {list(shape)} of {spec.datatype} has {expected}",
            )
        return np.frombuffer(data, dtype).reshape(shape)
    if len(data) != math.prod(shape):
        raise InvalidInput(
            tensor.body, f"{len(data)} values; shape {list(shape)} has {math.prod(shape)}"
        )
    try:
        values = np.asarray(data, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(tensor.body, "expected a list of numbers") from error
    if (
        spec.datatype == "UINT8"
        and not ((values >= 0) & (values <= 255) & (np.floor(values) == values)).all()
    ):
        raise InvalidInput(tensor.body, "expected whole numbers from 0 to 255 for UINT8")
    # A number that overflows the type becomes infinity, which the check of values refuses.
    with np.errstate(over="ignore"):
        rows: npt.NDArray[Any] = values.astype(NUMPY_DTYPES[spec.datatype]).reshape(shape)
    return rows


def _checked_shape(tensor: RawTensor, spec: InputSpec, limits: Limits) -> tuple[int, ...]:
    if tensor.datatype != spec.datatype:
        raise InvalidInput(
            f"{tensor.header}.datatype",
            f"{tensor.datatype[:32]!r}; expected {spec.datatype!r}",
        )
    shape = tensor.shape
    if len(shape) != 4 or tuple(shape[1:]) != spec.shape:
        wanted = f"[rows, {', '.join(str(size) for size in spec.shape)}]"
        # A shape may be thousands of numbers long.
        shown = f"{list(shape[:8])}{' and more' if len(shape) > 8 else ''}"
        raise InvalidInput(f"{tensor.header}.shape", f"{shown}; expected {wanted}")
    check_row_count(f"{tensor.header}.shape", shape[0], limits)
    return tuple(shape)


def check_row_count(field: str, rows: int, limits: Limits) -> None:
    """Refuse an empty batch and one over the limit.

    Raises:
        InvalidInput: naming the field.

    """
    if not 1 <= rows <= limits.rows:
        raise InvalidInput(field, f"{rows} rows; expected 1 to {limits.rows}")


def check_image_shape(field: str, shape: Sequence[int], images: int) -> None:
    """Refuse a shape of encoded images that is neither [N] nor, as Triton's clients send, [N, 1].

    Raises:
        InvalidInput: naming the shape.

    """
    if tuple(shape) not in ((images,), (images, 1)):
        shown = f"{list(shape[:8])}{' and more' if len(shape) > 8 else ''}"
        raise InvalidInput(f"{field}.shape", f"{shown}; {images} images have shape [{images}]")


def split_bytes_tensor(data: bytes | memoryview, field: str, limits: Limits) -> list[bytes]:
    """Elements of a raw BYTES tensor: each has a length of four little-endian bytes before it.

    Raises:
        InvalidInput: lengths and data do not agree, or there are too many elements.

    """
    elements: list[bytes] = []
    view, place = memoryview(data), 0
    while place < len(view):
        if place + 4 > len(view):
            raise InvalidInput(field, "ends within the length of an element")
        [size] = struct.unpack_from("<I", view, place)
        place += 4
        if place + size > len(view):
            raise InvalidInput(field, f"element {len(elements)} is shorter than its length says")
        elements.append(bytes(view[place : place + size]))
        place += size
        if len(elements) > limits.rows:
            raise InvalidInput(field, f"more than {limits.rows} elements")
    return elements


def join_bytes_tensor(elements: Sequence[bytes]) -> bytes:
    """Write a raw BYTES tensor."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)
