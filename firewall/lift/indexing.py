"""Operators that look values up by index, order them, or write them by index."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from firewall.lift.node import NONE, SELECTED, Node, Operator, Refusal, Run, plain, whole_numbers
from firewall.lift.tensors import dtype_of

_REDUCTIONS: Mapping[str, str] = MappingProxyType(
    {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
)


def _counted(index: Tensor, size: int) -> Tensor:
    """Indices from the front, where negative ones count from the end."""
    index = index.long()
    return torch.where(index < 0, index + size, index)


def _gather(node: Node) -> Run:
    axis = node.integer("axis", 0)
    fixed = node.constant(1)
    if fixed is not None and fixed.ndim == 0:
        position = int(fixed)
        return lambda x, _: x.select(axis, position)
    from_front = fixed is not None and bool((fixed >= 0).all())

    def gather(x: Tensor, index: Tensor) -> Tensor:
        at = axis % x.ndim
        if not from_front:
            index = _counted(index, x.shape[at])
        taken = x.index_select(at, index.reshape(-1))
        if index.ndim == 1:
            return taken
        return taken.reshape(*x.shape[:at], *index.shape, *x.shape[at + 1 :])

    return gather


def _gather_elements(node: Node) -> Run:
    axis = node.integer("axis", 0)
    return lambda x, index: x.gather(axis, _counted(index, x.shape[axis]))


def _flat_positions(index: Tensor, sizes: torch.Size) -> Tensor:
    """Positions [...] in a flattened tensor, of indices [..., len(sizes)]."""
    flat = torch.zeros(index.shape[:-1], dtype=torch.int64, device=index.device)
    for place, size in enumerate(sizes):
        step = index[..., place].long()
        if bool(((step < -size) | (step >= size)).any()):
            raise Refusal(f"an index beyond a size of {size}")
        flat = flat * size + torch.where(step < 0, step + size, step)
    return flat


def _gather_nd(node: Node) -> Run:
    batch = node.integer("batch_dims", 0)

    def gather(x: Tensor, index: Tensor) -> Tensor:
        depth = index.shape[-1]
        looked, rest = x.shape[batch : batch + depth], x.shape[batch + depth :]
        rows = math.prod(x.shape[:batch])
        flat = _flat_positions(index, looked).reshape(rows, -1)
        source = x.reshape(rows, math.prod(looked), *rest)
        row = torch.arange(rows, device=x.device)[:, None]
        return source[row, flat].reshape(*index.shape[:-1], *rest)

    return gather


def _scatter_elements(node: Node) -> Run:
    axis, reduction = node.integer("axis", 0), node.text("reduction", "none")

    def scatter(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        index = _counted(index, x.shape[axis])
        if reduction == "none":
            return x.scatter(axis, index, updates)
        return x.scatter_reduce(axis, index, updates, _REDUCTIONS[reduction])

    return scatter


def _scatter_nd(node: Node) -> Run:
    reduction = node.text("reduction", "none")

    def scatter(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        depth = index.shape[-1]
        looked, rest = x.shape[:depth], x.shape[depth:]
        flat = _flat_positions(index, looked).reshape(-1, 1)
        width = math.prod(rest)
        target = x.reshape(math.prod(looked), width)
        spread, source = flat.expand(-1, width), updates.reshape(-1, width)
        if reduction == "none":
            return target.scatter(0, spread, source).reshape(x.shape)
        return target.scatter_reduce(0, spread, source, _REDUCTIONS[reduction]).reshape(x.shape)

    return scatter


def _one_hot(node: Node) -> Run:
    axis = node.integer("axis", -1)
    read = node.integers(1)

    def one_hot(*inputs: Tensor) -> Tensor:
        index, values, depths = inputs[0].long(), inputs[2], read(inputs)
        assert depths is not None
        depth = depths[0]
        classes = torch.arange(depth, device=index.device)
        at = axis % (index.ndim + 1)
        index = torch.where(index < 0, index + depth, index).unsqueeze(at)
        hot = index == classes.reshape(-1, *[1] * (index.ndim - 1 - at))
        return torch.where(hot, values[1], values[0])

    return one_hot


def _top_k(node: Node) -> Run:
    axis, largest = node.integer("axis", -1), node.flag("largest", True)
    read = node.integers(1, "k")

    def top_k(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        x, counts = inputs[0], read(inputs)
        assert counts is not None
        if counts[0] > x.shape[axis]:
            raise Refusal(f"k={counts[0]} of {x.shape[axis]} values")
        # Stable, so that of equal values the first one wins, as ONNX has it.
        values, order = torch.sort(x, dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, counts[0]), order.narrow(axis, 0, counts[0])

    return top_k


def _extreme(name: str) -> Operator:
    def build(node: Node) -> Run:
        axis, keep = node.integer("axis", 0), node.flag("keepdims", True)
        last = node.flag("select_last_index")
        run = getattr(torch, name)

        def find(x: Tensor) -> Tensor:
            if not last:
                return run(x, dim=axis, keepdim=keep)  # type: ignore[no-any-return]
            return x.shape[axis] - 1 - run(x.flip(axis), dim=axis, keepdim=keep)  # type: ignore[no-any-return]

        return find

    return Operator(build, NONE)


def _compress(node: Node) -> Run:
    axis = node.attributes.get("axis")

    def compress(x: Tensor, condition: Tensor) -> Tensor:
        source, at = (x.reshape(-1), 0) if axis is None else (x, int(axis))
        rows = condition.reshape(-1)[: source.shape[at]].nonzero().reshape(-1)
        return source.index_select(at, rows)

    return compress


def _trilu(node: Node) -> Run:
    upper = node.flag("upper", True)
    read = node.integers(1)

    def trilu(*inputs: Tensor) -> Tensor:
        x, diagonal = inputs[0], (read(inputs) or [0])[0]
        return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)

    return trilu


def _eye_like(node: Node) -> Run:
    wanted, diagonal = node.attributes.get("dtype"), node.integer("k", 0)
    dtype = None if wanted is None else dtype_of(int(wanted))

    def eye(x: Tensor) -> Tensor:
        ones = torch.ones(x.shape, dtype=dtype or x.dtype, device=x.device)
        return torch.tril(torch.triu(ones, diagonal), diagonal)

    return eye


def _reverse_sequence(node: Node) -> Run:
    batch, time = node.integer("batch_axis", 1), node.integer("time_axis", 0)

    def reverse(x: Tensor, lengths: Tensor) -> Tensor:
        moved = x.movedim((batch, time), (0, 1))
        rows = [
            torch.cat([row[:length].flip(0), row[length:]])
            for row, length in zip(moved, whole_numbers(lengths) or [], strict=True)
        ]
        return torch.stack(rows).movedim((0, 1), (batch, time))

    return reverse


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "ArgMax": _extreme("argmax"),
        "ArgMin": _extreme("argmin"),
        "Compress": Operator(_compress, SELECTED, kept=(0,)),
        "EyeLike": Operator(_eye_like, NONE),
        "Gather": Operator(_gather, SELECTED, kept=(0,)),
        "GatherElements": Operator(_gather_elements, SELECTED, kept=(0,)),
        "GatherND": Operator(_gather_nd, SELECTED, kept=(0,)),
        "NonZero": Operator(plain(lambda x: x.nonzero().t()), NONE),
        "OneHot": Operator(_one_hot, SELECTED),
        "ReverseSequence": Operator(_reverse_sequence, SELECTED),
        "Scatter": Operator(_scatter_elements, SELECTED),
        "ScatterElements": Operator(_scatter_elements, SELECTED),
        "ScatterND": Operator(_scatter_nd, SELECTED),
        "TopK": Operator(_top_k, SELECTED),
        "Trilu": Operator(_trilu, kept=(0,)),
    }
)
