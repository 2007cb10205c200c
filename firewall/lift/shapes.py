"""Operators that move values and change none: shapes, slices, joins, pads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from firewall.lift.node import EVERY, NONE, Node, Operator, Refusal, Run, plain


def _reshape(node: Node) -> Run:
    read, copy_zero = node.integers(1, "shape"), not node.flag("allowzero")

    def reshape(*inputs: Tensor) -> Tensor:
        x, sizes = inputs[0], read(inputs)
        assert sizes is not None
        if copy_zero:
            sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
        return x.reshape(sizes)

    return reshape


def _transpose(node: Node) -> Run:
    order = node.attributes.get("perm")
    if order is None:
        return lambda x: x.permute(*reversed(range(x.ndim)))
    order = tuple(order)
    return lambda x: x.permute(order)


def _flatten(node: Node) -> Run:
    axis = node.integer("axis", 1)

    def flatten(x: Tensor) -> Tensor:
        at = axis + x.ndim if axis < 0 else axis
        return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))

    return flatten


def _squeeze(node: Node) -> Run:
    read = node.integers(1, "axes")

    def squeeze(*inputs: Tensor) -> Tensor:
        x, axes = inputs[0], read(inputs)
        if axes is None:
            return x.squeeze()
        if any(x.shape[axis] != 1 for axis in axes):
            raise Refusal(f"axes {axes} of a tensor {list(x.shape)}")
        return x.squeeze(tuple(axes))

    return squeeze


def _unsqueeze(node: Node) -> Run:
    read = node.integers(1, "axes")

    def unsqueeze(*inputs: Tensor) -> Tensor:
        x, axes = inputs[0], read(inputs)
        assert axes is not None
        rank = x.ndim + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return unsqueeze


def _expand(node: Node) -> Run:
    read = node.integers(1)

    def expand(*inputs: Tensor) -> Tensor:
        x, sizes = inputs[0], read(inputs)
        assert sizes is not None
        # ONNX broadcasts both ways, so a size of 1 leaves the tensor's own.
        return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(sizes)))

    return expand


def _concat(node: Node) -> Run:
    axis = node.integer("axis", 1) if node.opset < 4 else int(node.required("axis"))
    return lambda *inputs: torch.cat(inputs, axis)


def _split(node: Node) -> Run:
    axis, parts = node.integer("axis", 0), node.integer("num_outputs", node.declared)
    read = node.integers(1, "split")

    def split(*inputs: Tensor) -> tuple[Tensor, ...]:
        x, sizes = inputs[0], read(inputs)
        if sizes is None:
            # The last part is smaller where the axis cannot be split evenly.
            part = -(-x.shape[axis] // parts)
            sizes = [min(part, x.shape[axis] - part * index) for index in range(parts)]
        return torch.split_with_sizes(x, sizes, axis)

    return split


def _slice(node: Node) -> Run:
    read_starts, read_ends = node.integers(1, "starts"), node.integers(2, "ends")
    read_axes, read_steps = node.integers(3, "axes"), node.integers(4)

    def slice_(*inputs: Tensor) -> Tensor:
        x, starts, ends = inputs[0], read_starts(inputs), read_ends(inputs)
        assert starts is not None
        assert ends is not None
        axes = read_axes(inputs) or list(range(len(starts)))
        steps = read_steps(inputs) or [1] * len(starts)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            x = _taken(x, axis, start, end, step)
        return x

    return slice_


def _taken(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    size = x.shape[axis]
    start, end = (start + size if start < 0 else start), (end + size if end < 0 else end)
    if step > 0:
        start, end = min(max(start, 0), size), min(max(end, 0), size)
        if step == 1:
            return x.narrow(axis, start, max(end - start, 0))
    else:
        start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
    rows = range(start, end, step)
    return x.index_select(axis, torch.tensor(rows, dtype=torch.int64, device=x.device))


def _tile(node: Node) -> Run:
    if node.opset < 6:

        def along(x: Tensor, tiles: Tensor, axis: Tensor) -> Tensor:
            repeats = [1] * x.ndim
            repeats[int(axis)] = int(tiles)
            return x.repeat(repeats)

        return along
    read = node.integers(1)

    def tile(*inputs: Tensor) -> Tensor:
        repeats = read(inputs)
        assert repeats is not None
        return inputs[0].repeat(repeats)

    return tile


def _pad(node: Node) -> Run:
    mode = node.text("mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise Refusal(f"mode {mode}")
    old = "value" if node.opset < 11 else ""
    read, read_axes = node.integers(1, "paddings" if node.opset < 2 else "pads"), node.integers(3)
    read_value = node.numbers(2, old)

    def pad(*inputs: Tensor) -> Tensor:
        x, amounts = inputs[0], read(inputs)
        assert amounts is not None
        axes = read_axes(inputs)
        if axes is None:
            axes = list(range(x.ndim))
        begins = dict.fromkeys(range(x.ndim), 0)
        ends = dict(begins)
        for index, axis in enumerate(axes):
            begins[axis % x.ndim] = amounts[index]
            ends[axis % x.ndim] = amounts[index + len(axes)]
        if mode == "constant":
            value = (read_value(inputs) or [0.0])[0]
            pairs = [side[axis] for axis in reversed(range(x.ndim)) for side in (begins, ends)]
            return F.pad(x, pairs, value=value if x.is_floating_point() else int(value))
        for axis in range(x.ndim):
            begin, end = begins[axis], ends[axis]
            if begin or end:
                # numpy has the rules of all modes, so it moves the positions.
                positions = np.arange(max(-begin, 0), x.shape[axis] - max(-end, 0))
                moved = np.pad(positions, (max(begin, 0), max(end, 0)), mode)  # type: ignore[call-overload]
                x = x.index_select(axis, torch.from_numpy(moved).to(x.device))
        return x

    return pad


def _shape(node: Node) -> Run:
    start, end = node.integer("start", 0), node.attributes.get("end")
    part = slice(start, None if end is None else int(end))
    return lambda x: torch.tensor(x.shape[part], dtype=torch.int64, device=x.device)


def _size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), device=x.device)


def _depth_to_space(node: Node) -> Run:
    block = int(node.required("blocksize"))
    column_first = node.text("mode", "DCR") == "CRD"

    def move(x: Tensor) -> Tensor:
        rows, depth, height, width = x.shape
        kept = depth // block**2
        if column_first:
            y = x.reshape(rows, kept, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
        else:
            y = x.reshape(rows, block, block, kept, height, width).permute(0, 3, 4, 1, 5, 2)
        return y.reshape(rows, kept, height * block, width * block)

    return move


def _space_to_depth(node: Node) -> Run:
    block = int(node.required("blocksize"))
    column_first = node.text("mode", "DCR") == "CRD"

    def move(x: Tensor) -> Tensor:
        rows, depth, height, width = x.shape
        y = x.reshape(rows, depth, height // block, block, width // block, block)
        y = y.permute(0, 1, 3, 5, 2, 4) if column_first else y.permute(0, 3, 5, 1, 2, 4)
        return y.reshape(rows, depth * block**2, height // block, width // block)

    return move


def _dropout(node: Node) -> Run:
    if node.opset < 7 and not node.flag("is_test"):
        raise Refusal("training mode")
    training = node.constant(2)
    if node.has(2) and (training is None or bool(training)):
        ratio = node.constant(1)
        if training is None or ratio is None or float(ratio) != 0:
            raise Refusal("training mode")
    if node.results == 1:
        return lambda x, *_: x
    return lambda x, *_: (x, torch.ones_like(x, dtype=torch.bool if node.opset >= 10 else x.dtype))


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "Concat": Operator(_concat, kept=EVERY),
        "DepthToSpace": Operator(_depth_to_space, kept=(0,)),
        "Dropout": Operator(_dropout, kept=(0,)),
        "Expand": Operator(_expand, kept=(0,)),
        "Flatten": Operator(_flatten, kept=(0,)),
        "Identity": Operator(plain(lambda x: x), kept=(0,)),
        "Pad": Operator(_pad, kept=(0,)),
        "Reshape": Operator(_reshape, kept=(0,)),
        "Shape": Operator(_shape, NONE, taken=(0,)),
        "Size": Operator(plain(_size), NONE, taken=(0,)),
        "Slice": Operator(_slice, kept=(0,)),
        "SpaceToDepth": Operator(_space_to_depth, kept=(0,)),
        "Split": Operator(_split, kept=(0,), every_output=True),
        "Squeeze": Operator(_squeeze, kept=(0,)),
        "Tile": Operator(_tile, kept=(0,)),
        "Transpose": Operator(_transpose, kept=(0,)),
        "Unsqueeze": Operator(_unsqueeze, kept=(0,)),
    }
)
