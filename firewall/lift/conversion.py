"""Operators that make tensors from nothing, or change their type."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from onnx import TensorProto
from torch import Tensor

from firewall.lift.node import NONE, STRAIGHT, Node, Operator, Refusal, Run
from firewall.lift.tensors import dtype_of, tensor_of
from firewall.stages import with_surrogate


def converted(x: Tensor, stands_for: torch.dtype | None, to: torch.dtype) -> Tensor:
    """Cast as ONNX does, straight through where whole numbers would end a gradient.

    Args:
        x: the values.
        stands_for: the type that ONNX gives them, where `x` may be a stand-in.
        to: the type wanted.

    """
    if to.is_floating_point:
        return x.to(to)
    recorded = x.is_floating_point() and x.requires_grad and torch.is_grad_enabled()
    if not recorded or to == torch.bool:
        # Whether a number is other than zero has no gradient worth following. A boolean's
        # stand-in keeps the one that it has.
        if to == torch.bool and stands_for == torch.bool and recorded:
            return x
        return _cast(x, to)
    # Doubles hold all whole numbers that a gradient can come from.
    wide = x.double()
    return with_surrogate(wide, lambda v: _cast(v, to).double(), lambda v: v)


def _cast(x: Tensor, to: torch.dtype) -> Tensor:
    if x.is_floating_point() and to in (torch.uint8, torch.int8, torch.uint16, torch.int16):
        # What a float beyond a small type becomes is not defined in C++; wrap as numpy does.
        return x.to(torch.int64).to(to)
    return x.to(to)


def _target(node: Node) -> torch.dtype:
    to = node.required("to")
    # Opset 1 has the name of the type.
    return dtype_of(TensorProto.DataType.Value(to) if isinstance(to, str) else int(to))


def _cast_operator(node: Node) -> Run:
    to = _target(node)
    stands_for = node.dtype(0)
    return lambda x: converted(x, stands_for, to)


def _cast_result(node: Node) -> torch.dtype | None:
    to = _target(node)
    return None if to.is_floating_point else to


def _like_dtype(node: Node) -> torch.dtype:
    known = node.dtype(1)
    if known is None:
        raise Refusal("a type that is not known when the graph is read")
    return known


def _cast_like(node: Node) -> Run:
    to = _like_dtype(node)
    stands_for = node.dtype(0)
    return lambda x, _: converted(x, stands_for, to)


def _like_result(node: Node) -> torch.dtype | None:
    to = _like_dtype(node)
    return None if to.is_floating_point else to


_LISTS: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "value_float": torch.float32,
        "value_floats": torch.float32,
        "value_int": torch.int64,
        "value_ints": torch.int64,
    }
)


def _constant(node: Node) -> Run:
    [(name, value)] = node.attributes.items()
    if name == "value":
        fixed = tensor_of(value)
    elif name in _LISTS:
        fixed = torch.tensor(value, dtype=_LISTS[name])
    else:
        raise Refusal(name)
    return lambda: fixed


def _constant_of_shape(node: Node) -> Run:
    value = node.attributes.get("value")
    fill = torch.zeros(1) if value is None else tensor_of(value)
    number, kind = fill.reshape(-1)[0].item(), fill.dtype
    read = node.integers(0)

    def make(*inputs: Tensor) -> Tensor:
        return torch.full(read(inputs) or [], number, dtype=kind, device=inputs[0].device)

    return make


def _range(node: Node) -> Run:
    def make(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
        first, last, step = (one.item() for one in (start, limit, delta))
        count = max(-int((first - last) // step), 0)
        places = torch.arange(count, device=start.device)
        if not start.is_floating_point():
            return start + places.to(start.dtype) * delta
        wide = start.float() if start.dtype in (torch.float16, torch.bfloat16) else start
        return (wide + places.to(wide.dtype) * delta.to(wide.dtype)).to(start.dtype)

    return make


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "Cast": Operator(_cast_operator, STRAIGHT, taken=(0,), result=_cast_result),
        "CastLike": Operator(_cast_like, STRAIGHT, taken=(0, 1), result=_like_result),
        "Constant": Operator(_constant, NONE),
        "ConstantOfShape": Operator(_constant_of_shape, NONE),
        "Range": Operator(_range, NONE),
    }
)
