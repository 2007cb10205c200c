"""Operators that reduce axes, run along one, or make it a distribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from firewall.lift.node import NONE, Node, Operator, Refusal, Run

_Reduce = Callable[[Tensor, list[int], bool], Tensor]


def norm(x: Tensor, p: float, axes: list[int], keep: bool) -> Tensor:
    """The p-norm over axes, with a gradient of 0 where all values are 0."""
    return torch.linalg.vector_norm(x, p, axes, keep)  # type: ignore[no-any-return]


def _reduction(run: _Reduce) -> Callable[[Node], Run]:
    def build(node: Node) -> Run:
        keep, skip = node.flag("keepdims", True), node.flag("noop_with_empty_axes")
        read = node.integers(1, "axes")

        def reduce(*inputs: Tensor) -> Tensor:
            x, axes = inputs[0], read(inputs)
            if not axes:
                if skip:
                    return run(x.unsqueeze(0), [0], False)
                axes = list(range(x.ndim))
            if not x.ndim:
                return run(x.unsqueeze(0), [0], False)
            return run(x, [axis % x.ndim for axis in axes], keep)

        return reduce

    return build


def _extreme(run: Callable[..., Tensor], empty: float) -> _Reduce:
    def reduce(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        if x.numel():
            return run(x, axes, keep)
        # torch has no extreme of an empty set; ONNX has that of the type.
        value: float | int | bool = empty
        if not x.dtype.is_floating_point:
            value = empty > 0
            if x.dtype != torch.bool:
                bounds = torch.iinfo(x.dtype)
                value = bounds.max if empty > 0 else bounds.min
        return x.new_full(x.sum(axes, keepdim=keep).shape, value)

    return reduce


def _l1(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x.abs(), axes, keep)


def _l2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if not x.is_floating_point():
        return x.double().square().sum(axes, keepdim=keep).sqrt().to(x.dtype)
    return norm(x, 2.0, axes, keep)


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    # torch widens integers, ONNX does not.
    return x.sum(axes, keepdim=keep).to(x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if not x.is_floating_point():
        return x.double().mean(axes, keepdim=keep).to(x.dtype)
    return x.mean(axes, keepdim=keep)


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    kind = x.dtype
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x.to(kind)


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.logsumexp(axes, keepdim=keep)


def _float_only(run: _Reduce) -> _Reduce:
    def reduce(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        if not x.is_floating_point():
            return run(x.double(), axes, keep).to(x.dtype)
        return run(x, axes, keep)

    return reduce


def _normaliser(run: Callable[[Tensor, int], Tensor]) -> Callable[[Node], Run]:
    """Build an operator that runs along one axis; before opset 13 along all axes from it on."""

    def build(node: Node) -> Run:
        if node.opset >= 13:
            axis = node.integer("axis", -1)
            return lambda x: run(x, axis)
        axis = node.integer("axis", 1)

        def flattened(x: Tensor) -> Tensor:
            at = axis + x.ndim if axis < 0 else axis
            rows = x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))
            return run(rows, 1).reshape(x.shape)

        return flattened

    return build


def _hardmax(x: Tensor, axis: int) -> Tensor:
    best = x.argmax(axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, best, 1)


def _softmax(x: Tensor, axis: int) -> Tensor:
    return torch.softmax(x, axis)


def _log_softmax(x: Tensor, axis: int) -> Tensor:
    return torch.log_softmax(x, axis)


def _cumulative(run: Callable[[Tensor, int], Tensor], start: int) -> Callable[[Node], Run]:
    def build(node: Node) -> Run:
        exclusive, reverse = node.flag("exclusive"), node.flag("reverse")
        read = node.integers(1)

        def accumulate(*inputs: Tensor) -> Tensor:
            x, axes = inputs[0], read(inputs)
            if axes is None or len(axes) != 1:
                raise Refusal("no axis")
            axis = axes[0] % x.ndim
            y = x.flip(axis) if reverse else x
            if exclusive:
                first = torch.full_like(y.narrow(axis, 0, 1), start)
                y = torch.cat([first, y.narrow(axis, 0, y.shape[axis] - 1)], axis)
            y = run(y, axis).to(x.dtype)
            return y.flip(axis) if reverse else y

        return accumulate

    return build


def _cumulative_sum(x: Tensor, axis: int) -> Tensor:
    return torch.cumsum(x, axis)


def _cumulative_product(x: Tensor, axis: int) -> Tensor:
    return torch.cumprod(x, axis)


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "CumProd": Operator(_cumulative(_cumulative_product, 1)),
        "CumSum": Operator(_cumulative(_cumulative_sum, 0)),
        "Hardmax": Operator(_normaliser(_hardmax), NONE),
        "LogSoftmax": Operator(_normaliser(_log_softmax)),
        "ReduceL1": Operator(_reduction(_l1)),
        "ReduceL2": Operator(_reduction(_l2)),
        "ReduceLogSum": Operator(
            _reduction(_float_only(lambda x, axes, keep: _sum(x, axes, keep).log()))
        ),
        "ReduceLogSumExp": Operator(_reduction(_float_only(_log_sum_exp))),
        "ReduceMax": Operator(_reduction(_extreme(torch.amax, -math.inf))),
        "ReduceMean": Operator(_reduction(_mean)),
        "ReduceMin": Operator(_reduction(_extreme(torch.amin, math.inf))),
        "ReduceProd": Operator(_reduction(_product)),
        "ReduceSum": Operator(_reduction(_sum)),
        "ReduceSumSquare": Operator(_reduction(lambda x, axes, keep: _sum(x.square(), axes, keep))),
        "Softmax": Operator(_normaliser(_softmax)),
    }
)
