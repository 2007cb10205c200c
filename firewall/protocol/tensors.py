"""Tensors of the Open Inference Protocol as arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.errors import RemoteError

#: numpy's name of each datatype.
DATATYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """As a server describes a tensor. A shape's -1 is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


def tensor_infos(tensors: Any) -> tuple[TensorInfo, ...]:
    """Tensors as a server's metadata describes them."""
    return tuple(TensorInfo(one.name, one.datatype, tuple(one.shape)) for one in tensors)


def tensors_of(response: Any) -> dict[str, npt.NDArray[Any]]:
    """Raw or typed contents; a server may send either."""
    found: dict[str, npt.NDArray[Any]] = {}
    for number, tensor in enumerate(response.outputs):
        name = DATATYPES.get(tensor.datatype)
        if name is None:
            # Strings: of no use to whoever asks for numbers.
            continue
        dtype = np.dtype(name)
        if number < len(response.raw_output_contents):
            raw = response.raw_output_contents[number]
            flat = (
                np.frombuffer(raw, dtype.newbyteorder("<"))
                if len(raw) % dtype.itemsize == 0
                else np.empty(0, dtype)
            )
        else:
            [values] = [v for _, v in tensor.contents.ListFields()] or [[]]
            flat = np.asarray(values)
        if flat.size != math.prod(tensor.shape):
            raise RemoteError(
                f"output {tensor.name!r}: {flat.size} values; its shape "
                f"{list(tensor.shape)} has {math.prod(tensor.shape)}",
                "INTERNAL",
            )
        found[tensor.name] = flat.astype(dtype).reshape(tensor.shape)
    return found
