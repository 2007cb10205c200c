"""Pools over windows and over all spatial axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from firewall.lift.node import SELECTED, Node, Operator, Refusal, Run, plain
from firewall.lift.reductions import norm
from firewall.lift.window import Padding, Window

_AVERAGES: Mapping[int, Callable[..., Tensor]] = MappingProxyType(
    {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
)
_MAXIMA: Mapping[int, Callable[..., Any]] = MappingProxyType(
    {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
)
_CONVOLUTIONS: Mapping[int, Callable[..., Tensor]] = MappingProxyType(
    {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
)


def _kernel(node: Node) -> tuple[int, ...]:
    kernel = tuple(int(size) for size in node.required("kernel_shape"))
    if len(kernel) not in _MAXIMA:
        raise Refusal(f"{len(kernel)} spatial axes")
    return kernel


def _fits_torch(padding: Padding, kernel: Sequence[int]) -> tuple[int, ...] | None:
    """The padding, where torch's own pools take it: symmetric, at most half a window."""
    around = padding.symmetric
    if around is None or any(2 * pad > size for pad, size in zip(around, kernel, strict=True)):
        return None
    return around


def _sums(x: Tensor, kernel: tuple[int, ...], window: Window) -> Tensor:
    """Sum every window of a tensor that is padded already."""
    rank = len(kernel)
    rows = x.reshape(-1, 1, *x.shape[2:])
    ones = torch.ones((1, 1, *kernel), dtype=x.dtype, device=x.device)
    sums = _CONVOLUTIONS[rank](
        rows, ones, None, window.steps(rank), (0,) * rank, window.spacing(rank)
    )
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


def _average_pool(node: Node) -> Run:
    kernel, window = _kernel(node), Window.of(node)
    include = node.flag("count_include_pad")
    rank = len(kernel)
    dense = set(window.spacing(rank)) == {1}

    def pool(x: Tensor) -> Tensor:
        padding = window.padding(x.shape[2:], kernel)
        around = _fits_torch(padding, kernel)
        if dense and around is not None:
            return _AVERAGES[rank](x, kernel, window.steps(rank), around, count_include_pad=include)
        counted = F.pad(torch.ones_like(x[:1, :1]), padding.pairs(), value=1.0 if include else 0.0)
        counts = _sums(F.pad(counted, padding.pairs_beyond()), kernel, window)
        padded = F.pad(F.pad(x, padding.pairs()), padding.pairs_beyond())
        return _sums(padded, kernel, window) / counts

    return pool


def _max_pool(node: Node) -> Run:
    kernel, window = _kernel(node), Window.of(node)
    rank, with_indices = len(kernel), node.results > 1
    column_first = node.flag("storage_order")

    def run(x: Tensor, around: tuple[int, ...]) -> Any:
        return _MAXIMA[rank](
            x,
            kernel,
            window.steps(rank),
            around,
            window.spacing(rank),
            return_indices=with_indices,
        )

    def pool(x: Tensor) -> Any:
        if not x.is_floating_point():
            # torch has no pools of small integers. Their values are exact as floats.
            result = pool(x.double())
            if with_indices:
                return result[0].to(x.dtype), result[1]
            return result.to(x.dtype)
        padding = window.padding(x.shape[2:], kernel)
        around = _fits_torch(padding, kernel)
        if around is not None and not with_indices:
            return run(x, around)
        padded = F.pad(x, padding.pairs(), value=-math.inf)
        padded = F.pad(padded, padding.pairs_beyond(), value=-math.inf)
        result = run(padded, (0,) * rank)
        if not with_indices:
            return result
        return result[0], _places(x, padded, result[1], padding, column_first)

    return pool


def _places(
    x: Tensor, padded: Tensor, found: Tensor, padding: Padding, column_first: bool
) -> Tensor:
    """Positions in x, counted over the whole tensor, of positions in an image of `padded`."""
    at: list[Tensor] = []
    for size, (begin, _) in zip(reversed(padded.shape[2:]), reversed(padding.pads), strict=True):
        at.insert(0, found % size - begin)
        found = torch.div(found, size, rounding_mode="floor")
    order = range(len(at))
    flat = torch.zeros_like(found)
    for axis in reversed(order) if column_first else order:
        flat = flat * x.shape[2 + axis] + at[axis]
    images = torch.arange(x.shape[0] * x.shape[1], device=x.device)
    images = images.reshape(x.shape[0], x.shape[1], *[1] * len(at))
    return flat + images * math.prod(x.shape[2:])


def _lp_pool(node: Node) -> Run:
    kernel, window, p = _kernel(node), Window.of(node), node.number("p", 2.0)

    def pool(x: Tensor) -> Tensor:
        padding = window.padding(x.shape[2:], kernel)
        padded = F.pad(F.pad(x, padding.pairs()), padding.pairs_beyond())
        sums = _sums(padded.abs() ** p, kernel, window)
        # The root has no gradient at 0; windows of zeros get none instead of an infinite one.
        positive = sums > 0
        root = torch.where(positive, sums, torch.ones_like(sums)) ** (1 / p)
        return torch.where(positive, root, torch.zeros_like(root))

    return pool


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


def _global_lp_pool(node: Node) -> Run:
    p = node.number("p", 2.0)
    return lambda x: norm(x, p, _spatial(x), True)


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "AveragePool": Operator(_average_pool),
        "GlobalAveragePool": Operator(plain(lambda x: x.mean(_spatial(x), keepdim=True))),
        "GlobalLpPool": Operator(_global_lp_pool),
        "GlobalMaxPool": Operator(plain(lambda x: x.amax(_spatial(x), keepdim=True)), kept=(0,)),
        "LpPool": Operator(_lp_pool),
        "MaxPool": Operator(_max_pool, SELECTED, kept=(0,)),
    }
)
