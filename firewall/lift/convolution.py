"""Convolutions of one to three spatial axes, and their transposes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from firewall.lift.node import Node, Operator, Refusal, Run, in_single
from firewall.lift.window import Window

_CONVOLUTIONS: Mapping[int, Callable[..., Tensor]] = MappingProxyType(
    {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
)
_TRANSPOSED: Mapping[int, Callable[..., Tensor]] = MappingProxyType(
    {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
)


def _of_rank(table: Mapping[int, Callable[..., Tensor]], rank: int) -> Callable[..., Tensor]:
    try:
        return table[rank]
    except KeyError:
        raise Refusal(f"{rank} spatial axes") from None


def convolution(node: Node) -> Run:
    """Return the convolution of a node as a function of x [N, C, ...], weights and bias."""
    window, groups = Window.of(node), node.integer("group", 1)

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = x.ndim - 2
        run = _of_rank(_CONVOLUTIONS, rank)
        padding = window.padding(x.shape[2:], weight.shape[2:])
        around: Sequence[int] | None = padding.symmetric
        if around is None:
            x, around = F.pad(x, padding.pairs()), (0,) * rank
        return run(x, weight, bias, window.steps(rank), tuple(around), window.spacing(rank), groups)

    return convolve


def _conv_transpose(node: Node) -> Run:
    window, groups = Window.of(node), node.integer("group", 1)
    more, sizes = node.attributes.get("output_padding"), node.attributes.get("output_shape")

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = x.ndim - 2
        strides, dilations = window.steps(rank), window.spacing(rank)
        whole = _of_rank(_TRANSPOSED, rank)(
            x, weight, stride=strides, dilation=dilations, groups=groups
        )
        pairs: list[int] = []
        for axis in reversed(range(rank)):
            extra = int(more[axis]) if more else 0
            size = whole.shape[2 + axis] + extra
            if sizes is not None:
                total = size - int(sizes[-rank:][axis])
            elif window.auto_pad in ("SAME_UPPER", "SAME_LOWER"):
                total = size - x.shape[2 + axis] * strides[axis]
            elif window.pads and window.auto_pad == "NOTSET":
                pairs += [-window.pads[axis], extra - window.pads[axis + rank]]
                continue
            else:
                total = 0
            begin = total // 2 if window.auto_pad == "SAME_UPPER" else total - total // 2
            pairs += [-begin, extra - (total - begin)]
        if any(pairs):
            whole = F.pad(whole, pairs)
        if bias is None:
            return whole
        return whole + bias.reshape(-1, *[1] * rank)

    return convolve


def _single(build: Callable[[Node], Run]) -> Callable[[Node], Run]:
    return lambda node: in_single(build(node))


def _col_to_im(node: Node) -> Run:
    read_image, read_block = node.integers(1), node.integers(2)
    strides, dilations = node.attributes.get("strides"), node.attributes.get("dilations")
    pads = node.attributes.get("pads")

    def fold(*inputs: Tensor) -> Any:
        image, block = read_image(inputs), read_block(inputs)
        assert image is not None
        assert block is not None
        if len(image) != 2:
            raise Refusal(f"{len(image)} spatial axes")
        begins, ends = (pads or [0] * 4)[:2], (pads or [0] * 4)[2:]
        larger = tuple(size + begins[axis] + ends[axis] for axis, size in enumerate(image))
        steps, spacing = tuple(strides or (1, 1)), tuple(dilations or (1, 1))
        found = F.fold(inputs[0], larger, tuple(block), spacing, 0, steps)
        return found[..., begins[0] : begins[0] + image[0], begins[1] : begins[1] + image[1]]

    return fold


def _affine_grid(node: Node) -> Run:
    align, read = node.flag("align_corners"), node.integers(1)

    def grid(*inputs: Tensor) -> Tensor:
        return F.affine_grid(inputs[0], read(inputs) or [], align)

    return grid


def _grid_sample(node: Node) -> Run:
    names = {"linear": "bilinear", "cubic": "bicubic"}
    mode = node.text("mode", "bilinear" if node.opset < 20 else "linear")
    mode = names.get(mode, mode)
    padding, align = node.text("padding_mode", "zeros"), node.flag("align_corners")

    def sample(x: Tensor, grid: Tensor) -> Tensor:
        if x.ndim > 4 and mode == "bicubic":
            raise Refusal("cubic on more than two spatial axes")
        return F.grid_sample(x, grid, mode, padding, align)

    return sample


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "AffineGrid": Operator(_affine_grid),
        "Col2Im": Operator(_col_to_im),
        "Conv": Operator(_single(convolution)),
        "ConvTranspose": Operator(_single(_conv_transpose)),
        "GridSample": Operator(_grid_sample),
    }
)
