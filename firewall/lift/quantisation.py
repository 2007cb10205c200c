"""Quantised operators: forward as specified, backward as if nothing were rounded.

Sums of products of 8-bit numbers are exact in double precision, so what runtimes compute in
32-bit integers is computed in that, with or without gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from firewall.lift.convolution import convolution
from firewall.lift.node import STRAIGHT, Node, Operator, Refusal, Run
from firewall.lift.tensors import dtype_of
from firewall.stages import with_surrogate

_QUANTISED = (torch.int8, torch.uint8, torch.int16, torch.uint16)


def _along(x: Tensor, parameter: Tensor, axis: int, block: int) -> Tensor:
    """A scale or zero point in the shape in which it broadcasts over x."""
    if parameter.ndim == 0 or parameter.numel() == 1:
        return parameter.reshape(())
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    shape = [1] * x.ndim
    shape[axis] = -1
    return parameter.reshape(shape)


def _saturated(value: Tensor, zero: Tensor | None, kind: torch.dtype) -> Tensor:
    """Round, move to the zero point and clip to a type; a stand-in under gradients."""
    bounds = torch.iinfo(kind)

    def clip(v: Tensor) -> Tensor:
        moved = v if zero is None else v + zero.to(v.dtype)
        return moved.clamp(bounds.min, bounds.max)

    rounded = with_surrogate(value, lambda v: clip(torch.round(v)), clip)
    return rounded if rounded.requires_grad and torch.is_grad_enabled() else rounded.to(kind)


def _quantised_type(node: Node) -> torch.dtype:
    wanted = node.integer("output_dtype", 0)
    kind = node.dtype(2) if node.has(2) else torch.uint8
    if wanted:
        kind = dtype_of(wanted)
    if kind is None:
        raise Refusal("a zero point whose type is not known when the graph is read")
    if kind not in _QUANTISED:
        raise Refusal(f"type {str(kind).removeprefix('torch.')}")
    return kind


def _quantize(node: Node) -> Run:
    kind = _quantised_type(node)
    axis, block = node.integer("axis", 1), node.integer("block_size", 0)
    if node.integer("precision", 0):
        raise Refusal("attribute precision")

    def quantize(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        by = _along(x, scale, axis, block)
        offset = None if zero is None else _along(x, zero, axis, block)
        value = x.to(scale.dtype) / by
        if value.dtype in (torch.float16, torch.bfloat16):
            value = value.float()
        return _saturated(value, offset, kind)

    return quantize


def _dequantize(node: Node) -> Run:
    axis, block = node.integer("axis", 1), node.integer("block_size", 0)
    wanted = node.integer("output_dtype", 0)
    to = dtype_of(wanted) if wanted else None

    def dequantize(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        by = _along(x, scale, axis, block)
        kind = to or scale.dtype
        wide = torch.float32 if kind in (torch.float16, torch.bfloat16) else kind
        # Differences of integers that a float may not hold are taken before they become floats.
        value = x.double() if not x.is_floating_point() else x
        if zero is not None:
            value = value - _along(x, zero, axis, block).to(value.dtype)
        return (value.to(wide) * by.to(wide)).to(kind)

    return dequantize


def _dynamic_quantize(node: Node) -> Run:
    def quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        high, low = x.amax().clamp_min(0), x.amin().clamp_max(0)
        scale = (high - low) / 255
        safe = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero = torch.round((-low / safe).detach().clamp(0, 255)).to(torch.uint8)
        return _saturated(x / safe, zero, torch.uint8), scale, zero

    return quantize


def _shifted(x: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    """The numbers less their zero point, in double precision."""
    wide = x.double()
    return wide if zero is None else wide - _along(x, zero, axis, 0).double()


def _whole(x: Tensor) -> Tensor:
    """The result of an integer operator: int32, or a stand-in under gradients."""
    return x if x.requires_grad and torch.is_grad_enabled() else x.to(torch.int32)


def _conv_integer(node: Node) -> Run:
    convolve = convolution(node)

    def run(
        x: Tensor, weight: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
    ) -> Tensor:
        return _whole(convolve(_shifted(x, x_zero, 1), _shifted(weight, w_zero, 0)))

    return run


def _matmul_integer(node: Node) -> Run:
    def run(
        a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
    ) -> Tensor:
        # One zero point a row of the first, one a column of the second.
        return _whole(_shifted(a, a_zero, a.ndim - 2) @ _shifted(b, b_zero, b.ndim - 1))

    return run


def _int32(node: Node) -> torch.dtype:
    return torch.int32


def _uint8(node: Node) -> torch.dtype:
    return torch.uint8


def _requantised(total: Tensor, by: Tensor, zero: Tensor, kind: torch.dtype) -> Tensor:
    return _saturated(total.to(by.dtype) * by, zero, kind)


def _result_type(position: int) -> Run:
    def read(node: Node) -> torch.dtype:
        kind = node.dtype(position)
        if kind not in (torch.int8, torch.uint8):
            raise Refusal("a zero point that is neither int8 nor uint8")
        return kind

    return read


def _qlinear_conv(node: Node) -> Run:
    convolve, kind = convolution(node), _result_type(7)(node)

    def run(
        x: Tensor,
        x_scale: Tensor,
        x_zero: Tensor,
        weight: Tensor,
        w_scale: Tensor,
        w_zero: Tensor,
        y_scale: Tensor,
        y_zero: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        total = convolve(
            _shifted(x, x_zero, 1),
            _shifted(weight, w_zero, 0),
            None if bias is None else bias.double(),
        )
        by = x_scale.reshape(()) * _along(total, w_scale, 1, 0) / y_scale.reshape(())
        return _requantised(total, by, y_zero.reshape(()), kind)

    return run


def _qlinear_matmul(node: Node) -> Run:
    kind = _result_type(7)(node)

    def run(
        a: Tensor,
        a_scale: Tensor,
        a_zero: Tensor,
        b: Tensor,
        b_scale: Tensor,
        b_zero: Tensor,
        y_scale: Tensor,
        y_zero: Tensor,
    ) -> Tensor:
        total = _shifted(a, a_zero, a.ndim - 2) @ _shifted(b, b_zero, b.ndim - 1)
        rows, columns = total.ndim - 2, total.ndim - 1
        by = _along(total, a_scale, rows, 0).float() * _along(total, b_scale, columns, 0).float()
        return _requantised(
            total, by / y_scale.reshape(()).float(), _along(total, y_zero, rows, 0), kind
        )

    return run


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "ConvInteger": Operator(_conv_integer, STRAIGHT, taken=(0, 1), result=_int32),
        "DequantizeLinear": Operator(_dequantize, taken=(0,)),
        "DynamicQuantizeLinear": Operator(_dynamic_quantize, STRAIGHT, result=_uint8),
        "MatMulInteger": Operator(_matmul_integer, STRAIGHT, taken=(0, 1), result=_int32),
        "QLinearConv": Operator(_qlinear_conv, STRAIGHT, taken=(0, 3), result=_result_type(7)),
        "QLinearMatMul": Operator(_qlinear_matmul, STRAIGHT, taken=(0, 3), result=_result_type(7)),
        "QuantizeLinear": Operator(_quantize, STRAIGHT, result=_quantised_type),
    }
)
