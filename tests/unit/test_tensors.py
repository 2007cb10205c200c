"""Tensors of requests against a model's input."""

from __future__ import annotations

import numpy as np
import pytest

from firewall.bundle.spec import InputSpec
from firewall.errors import InvalidInput
from firewall.serve.tensors import (
    Limits,
    RawTensor,
    check_image_shape,
    join_bytes_tensor,
    split_bytes_tensor,
    to_rows,
)

LIMITS = Limits(rows=4)
FLOATS = InputSpec(channels=1, height=4, width=4)
BYTES = InputSpec(datatype="UINT8", layout="NHWC", channels=1, height=4, width=4, high=255.0)


def raw(data: object, datatype: str = "FP32", shape: tuple[int, ...] = (1, 1, 4, 4)) -> RawTensor:
    return RawTensor("header", "body", datatype, shape, data)  # type: ignore[arg-type]


def test_raw_bytes_are_not_copied() -> None:
    data = np.arange(16, dtype="<f4").tobytes()
    rows = to_rows(raw(memoryview(data)), FLOATS, LIMITS)
    assert np.shares_memory(rows, np.frombuffer(data, np.uint8))
    assert rows.shape == (1, 1, 4, 4)


def test_numbers_over_the_type_become_infinity_which_is_refused_later() -> None:
    rows = to_rows(raw([1e300] * 16), FLOATS, LIMITS)
    assert np.isinf(rows).all()


@pytest.mark.parametrize("value", [-1, 256, 0.5, np.nan, np.inf, -np.inf, 1e300])
def test_numbers_that_are_no_bytes(value: float) -> None:
    with pytest.raises(InvalidInput, match="whole numbers from 0 to 255"):
        to_rows(raw([value] * 16, "UINT8", (1, 4, 4, 1)), BYTES, LIMITS)


@pytest.mark.parametrize(
    ("tensor", "field", "words"),
    [
        (raw(b"", "FP64"), "header.datatype", "'FP64'; expected 'FP32'"),
        (raw(b"", "x" * 99), "header.datatype", "expected"),
        (raw(b"", shape=()), "header.shape", "[]; expected [rows, 1, 4, 4]"),
        (raw(b"", shape=(1, 4, 4, 1)), "header.shape", "[1, 4, 4, 1]; expected [rows, 1, 4, 4]"),
        (raw(b"", shape=(1,) * 2000), "header.shape", "and more"),
        (raw(b"", shape=(0, 1, 4, 4)), "header.shape", "0 rows; expected 1 to 4"),
        (raw(b"", shape=(5, 1, 4, 4)), "header.shape", "5 rows; expected 1 to 4"),
        (raw(b"", shape=(-1, 1, 4, 4)), "header.shape", "-1 rows; expected 1 to 4"),
        (raw(bytes(63)), "body", "63 bytes; shape [1, 1, 4, 4] of FP32 has 64"),
        (raw([0.5] * 17), "body", "17 values; shape [1, 1, 4, 4] has 16"),
    ],
)
def test_tensors_that_do_not_fit(tensor: RawTensor, field: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        to_rows(tensor, FLOATS, LIMITS)
    assert caught.value.field == field
    assert words in str(caught.value)
    assert len(str(caught.value)) < 200


def test_bytes_tensors_are_read_as_they_are_written() -> None:
    elements = [b"", b"abc", bytes(1000)]
    assert split_bytes_tensor(join_bytes_tensor(elements), "field", LIMITS) == elements
    assert split_bytes_tensor(b"", "field", LIMITS) == []


def test_a_bytes_tensor_of_too_many_elements_ends_there() -> None:
    with pytest.raises(InvalidInput, match="more than 4 elements"):
        split_bytes_tensor(bytes(1 << 20), "field", LIMITS)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_shapes_of_images(shape: tuple[int, ...]) -> None:
    check_image_shape("field", shape, 3)


@pytest.mark.parametrize("shape", [(), (2,), (1, 3), (3, 2), (3, 1, 1), (-3,), (1,) * 999])
def test_shapes_that_images_do_not_have(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"^field\.shape: .*3 images have shape \[3\]"):
        check_image_shape("field", shape, 3)
