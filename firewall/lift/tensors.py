"""Tensors and types of ONNX as torch's."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from firewall.lift.node import Refusal

DTYPES: Mapping[int, torch.dtype] = MappingProxyType(
    {
        TensorProto.FLOAT: torch.float32,
        TensorProto.DOUBLE: torch.float64,
        TensorProto.FLOAT16: torch.float16,
        TensorProto.BFLOAT16: torch.bfloat16,
        TensorProto.INT8: torch.int8,
        TensorProto.INT16: torch.int16,
        TensorProto.INT32: torch.int32,
        TensorProto.INT64: torch.int64,
        TensorProto.UINT8: torch.uint8,
        TensorProto.UINT16: torch.uint16,
        TensorProto.UINT32: torch.uint32,
        TensorProto.UINT64: torch.uint64,
        TensorProto.BOOL: torch.bool,
    }
)


def dtype_of(elem_type: int) -> torch.dtype:
    """Torch's type for one of `onnx.TensorProto.DataType`.

    Raises:
        Refusal: there is none (strings, 8-bit floats, 4-bit numbers, complex numbers).

    """
    try:
        return DTYPES[elem_type]
    except KeyError:
        known = TensorProto.DataType.keys()
        name = TensorProto.DataType.Name(elem_type) if elem_type < len(known) else str(elem_type)
        raise Refusal(f"type {name.lower()}") from None


def tensor_of(proto: onnx.TensorProto) -> Tensor:
    """A tensor with a copy of the values.

    Raises:
        Refusal: of a type that torch does not have, or its values are in another file.

    """
    dtype = dtype_of(proto.data_type)
    if proto.data_location == TensorProto.EXTERNAL:
        raise Refusal("weights in another file")
    array = np.array(numpy_helper.to_array(proto))
    if dtype == torch.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
