"""Resize and Upsample, as one linear map an axis.

Interpolation is separable: the values along an axis are a matrix times the values before. The
matrix has the coordinates of the specification, so that every mode is exact, and differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from firewall.lift.node import Node, Operator, Refusal, Run, in_single

_Array = npt.NDArray[np.float64]

_COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
    "tf_crop_and_resize",
)  # fmt: skip
#: How far a scale in single precision may be from one that gives a whole size.
_CLOSE = 1e-4
#: Those whose positions depend on the new size.
_BY_SIZE = ("align_corners", "tf_crop_and_resize")
_ROUNDINGS: Mapping[str, Callable[[_Array], _Array]] = MappingProxyType(
    {
        "round_prefer_floor": lambda x: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: np.floor(x + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
)


@dataclass(frozen=True)
class Axis:
    """How one axis is resized.

    Attributes:
        size: before.
        new: after.
        scale: as the node gives it; the quotient of the sizes only approximately.
        roi: begin and end of the part that is taken, of `tf_crop_and_resize`.

    """

    size: int
    new: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Rule:
    """The attributes of a node that resizes."""

    mode: str
    coordinates: str
    rounding: str
    cubic: float
    exclude_outside: bool
    antialias: bool

    def positions(self, axis: Axis) -> _Array:
        """Where the new values lie among those before."""
        y = np.arange(axis.new, dtype=np.float64)
        whole = axis.scale * axis.size
        if abs(whole - axis.new) < _CLOSE:
            whole = axis.new
        if self.coordinates == "asymmetric":
            return y / axis.scale
        if self.coordinates == "align_corners":
            return y * 0 if whole == 1 else y * (axis.size - 1) / (whole - 1)
        if self.coordinates == "tf_crop_and_resize":
            begin, end = axis.roi
            if whole == 1:
                return y * 0 + (begin + end) * (axis.size - 1) / 2
            return begin * (axis.size - 1) + y * (end - begin) * (axis.size - 1) / (whole - 1)
        if self.coordinates == "pytorch_half_pixel" and axis.new == 1:
            return y * 0
        offset = 0.0
        if self.coordinates == "half_pixel_symmetric":
            offset = axis.size / 2 * (1 - axis.new / whole)
        return offset + (y + 0.5) / axis.scale - 0.5

    def kernel(self, distance: _Array) -> _Array:
        """Weight of a value at a distance in pixels."""
        far = np.abs(distance)
        if self.mode == "linear":
            return np.asarray(np.clip(1 - far, 0, 1))
        a = self.cubic
        near = ((a + 2) * far - (a + 3)) * far * far + 1
        outer = ((far - 5) * far + 8) * far * a - 4 * a
        return np.where(far <= 1, near, np.where(far < 2, outer, 0.0))

    def matrix(self, axis: Axis) -> _Array:
        """Weights [new, size]."""
        at = self.positions(axis)
        stretch = min(axis.scale, 1.0) if self.antialias else 1.0
        reach = math.ceil((1 if self.mode == "linear" else 2) / stretch) + 1
        index = np.floor(at)[:, None] + np.arange(-reach, reach + 1)
        weights = self.kernel((index - at[:, None]) * stretch)
        if self.exclude_outside:
            weights[(index < 0) | (index >= axis.size)] = 0
        if self.exclude_outside or self.antialias:
            total = weights.sum(1, keepdims=True)
            weights = weights / np.where(total == 0, 1, total)
        found = np.zeros((axis.new, axis.size))
        rows = np.broadcast_to(np.arange(axis.new)[:, None], index.shape)
        # Values beyond the edge are those at the edge.
        np.add.at(found, (rows, np.clip(index, 0, axis.size - 1).astype(np.int64)), weights)
        return found

    def nearest(self, axis: Axis) -> npt.NDArray[np.int64]:
        """Indices [new] of the values that are copied."""
        at = _ROUNDINGS[self.rounding](self.positions(axis))
        return np.clip(at, 0, axis.size - 1).astype(np.int64)

    def outside(self, axis: Axis) -> npt.NDArray[np.bool_] | None:
        """New positions [new] that take the extrapolation value, if there can be any."""
        if self.coordinates != "tf_crop_and_resize":
            return None
        at = self.positions(axis)
        return np.asarray((at < 0) | (at > axis.size - 1))


def _resized(x: Tensor, axes: Mapping[int, Axis], weights: Callable[[Axis], Tensor]) -> Tensor:
    for number, axis in axes.items():
        found = weights(axis).to(x.device)
        if found.is_floating_point():
            x = (x.movedim(number, -1) @ found.to(x.dtype).t()).movedim(-1, number)
        else:
            x = x.index_select(number, found)
    return x


def _scaled(size: int, scale: float) -> int:
    """The new size; the product is in single precision, as scales are."""
    return math.floor(np.float32(size) * np.float32(scale))


def _run(
    rule: Rule, extrapolation: float, read: Callable[[Sequence[Tensor | None]], dict[int, Axis]]
) -> Run:
    @lru_cache(maxsize=8)
    def weights(axis: Axis) -> Tensor:
        if rule.mode == "nearest":
            return torch.from_numpy(rule.nearest(axis))
        return torch.from_numpy(rule.matrix(axis))

    def resize(*inputs: Tensor) -> Tensor:
        x, axes = inputs[0], read(inputs)
        kind = x.dtype
        if not kind.is_floating_point and rule.mode != "nearest":
            raise Refusal(f"mode {rule.mode} on integers")
        y = _resized(x, axes, weights)
        for number, axis in axes.items():
            outside = rule.outside(axis)
            if outside is not None and outside.any():
                mask = torch.from_numpy(outside).to(y.device)
                y = torch.where(
                    mask.reshape(-1, *[1] * (y.ndim - 1 - number)),
                    torch.full((), extrapolation, dtype=kind, device=y.device),
                    y,
                )
        return y

    return in_single(resize)


def _resize(node: Node) -> Run:
    mode = node.text("mode", "nearest")
    old = node.opset < 11
    coordinates = "asymmetric" if old else node.text("coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if old else node.text("nearest_mode", "round_prefer_floor")
    if mode not in ("nearest", "linear", "cubic") or rounding not in _ROUNDINGS:
        raise Refusal(f"mode {mode}, nearest_mode {rounding}")
    if coordinates not in _COORDINATES:
        raise Refusal(f"coordinate_transformation_mode {coordinates}")
    antialias = node.flag("antialias")
    if antialias and mode == "nearest":
        raise Refusal("antialias of nearest")
    rule = Rule(
        mode, coordinates, rounding, node.number("cubic_coeff_a", -0.75),
        node.flag("exclude_outside"), antialias,
    )  # fmt: skip
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    listed = node.attributes.get("axes")
    place = 1 if old else 2
    read_roi = node.numbers(1) if coordinates == "tf_crop_and_resize" else None
    read_scales, read_sizes = node.numbers(place), node.integers(3)

    def read(inputs: Sequence[Tensor | None]) -> dict[int, Axis]:
        x = inputs[0]
        assert x is not None
        axes = list(range(x.ndim)) if listed is None else [axis % x.ndim for axis in listed]
        scales, sizes = read_scales(inputs), read_sizes(inputs)
        before = [x.shape[axis] for axis in axes]
        if sizes:
            scales = [new / size for new, size in zip(sizes, before, strict=True)]
            if policy != "stretch":
                shared = min(scales) if policy == "not_larger" else max(scales)
                scales = [shared] * len(axes)
                sizes = [int(shared * size + 0.5) for size in before]
        else:
            if not scales:
                raise Refusal("neither scales nor sizes")
            sizes = [_scaled(size, scale) for scale, size in zip(scales, before, strict=True)]
            if coordinates in _BY_SIZE and any(
                abs(new - scale * size) > _CLOSE
                for new, scale, size in zip(sizes, scales, before, strict=True)
            ):
                # The specification and runtimes disagree on whether the size is rounded first.
                raise Refusal(f"{coordinates} by scales that give no whole size")
        if (
            coordinates == "pytorch_half_pixel"
            and mode == "cubic"
            and any(new == 1 != size for new, size in zip(sizes, before, strict=True))
        ):
            raise Refusal("pytorch_half_pixel to a size of 1 by mode cubic")
        roi = read_roi(inputs) if read_roi else None
        found = {}
        for index, axis in enumerate(axes):
            part = (0.0, 1.0) if not roi else (roi[index], roi[index + len(axes)])
            if scales[index] != 1 or sizes[index] != before[index] or part != (0.0, 1.0):
                found[axis] = Axis(before[index], sizes[index], scales[index], part)
        return found

    return _run(rule, node.number("extrapolation_value", 0.0), read)


def _legacy_scales(node: Node) -> Callable[[Sequence[Tensor | None]], list[float] | None]:
    """Scales of opset 1, which knows images only."""
    height, width = node.required("height_scale"), node.required("width_scale")
    return lambda inputs: [1.0, 1.0, float(height), float(width)]


def _upsample(node: Node) -> Run:
    mode = node.text("mode", "nearest")
    if mode not in ("nearest", "linear", "bilinear"):
        raise Refusal(f"mode {mode}")
    rule = Rule(
        "nearest" if mode == "nearest" else "linear", "asymmetric", "floor", 0, False, False
    )
    read_scales = _legacy_scales(node) if node.opset < 7 else node.numbers(1, "scales")

    def read(inputs: Sequence[Tensor | None]) -> dict[int, Axis]:
        x, scales = inputs[0], read_scales(inputs)
        assert x is not None
        assert scales is not None
        return {
            axis: Axis(size, _scaled(size, scale), scale)
            for axis, (size, scale) in enumerate(zip(x.shape, scales, strict=True))
            if scale != 1
        }

    return _run(rule, 0.0, read)


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {"Resize": Operator(_resize), "Upsample": Operator(_upsample)}
)
