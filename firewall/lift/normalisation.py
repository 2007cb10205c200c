"""Normalisations: by stored statistics, by those of a layer, group, channel or neighbourhood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from firewall.lift.node import Node, Operator, Refusal, Run
from firewall.lift.reductions import norm


def _batch_norm(node: Node) -> Run:
    epsilon = node.number("epsilon", 1e-5)
    if node.opset >= 14 and node.flag("training_mode"):
        return _by_batch(node, epsilon)
    if (node.opset < 7 and not node.flag("is_test")) or (node.opset < 14 and node.declared > 1):
        raise Refusal("training mode")
    by_place = node.opset < 9 and not node.flag("spatial", True)

    def normalise(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        if by_place:
            shape = x.shape[1:]
            apart = (x - mean.reshape(shape)) / torch.sqrt(variance.reshape(shape) + epsilon)
            return apart * scale.reshape(shape) + bias.reshape(shape)
        kinds = {x.dtype, scale.dtype, bias.dtype, mean.dtype, variance.dtype}
        if len(kinds) == 1 and x.dtype not in (torch.float16, torch.bfloat16):
            return F.batch_norm(x, mean, variance, scale, bias, eps=epsilon)
        wide = x.float()
        mean, variance, scale, bias = mean.float(), variance.float(), scale.float(), bias.float()
        return F.batch_norm(wide, mean, variance, scale, bias, eps=epsilon).to(x.dtype)

    return normalise


def _by_batch(node: Node, epsilon: float) -> Run:
    """Normalise by the statistics of the batch itself, as exporters write standardised weights."""
    momentum = node.number("momentum", 0.9)

    def normalise(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Any:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        axes = [0, *range(2, x.ndim)]
        found, shape = wide.mean(axes), (-1, *[1] * (x.ndim - 2))
        apart = wide - found.reshape(shape)
        spread = apart.square().mean(axes)
        slope = scale.to(wide.dtype) * torch.rsqrt(spread + epsilon)
        y = (apart * slope.reshape(shape) + bias.to(wide.dtype).reshape(shape)).to(x.dtype)
        if node.results == 1:
            return y
        running = mean * momentum + found.to(mean.dtype) * (1 - momentum)
        return y, running, variance * momentum + spread.to(variance.dtype) * (1 - momentum)

    return normalise


def _statistics(x: Tensor, axes: Sequence[int], epsilon: float) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation over axes, which are kept."""
    mean = x.mean(list(axes), keepdim=True)
    variance = (x - mean).square().mean(list(axes), keepdim=True)
    return mean, torch.rsqrt(variance + epsilon)


def _stashed(node: Node, x: Tensor) -> Tensor:
    """The input in the type in which statistics are computed; single precision by default."""
    kind = node.integer("stash_type", 1)
    if kind == 1 and x.dtype in (torch.float16, torch.bfloat16):
        return x.float()
    return x


def _layer_norm(node: Node) -> Run:
    first, epsilon = node.integer("axis", -1), node.number("epsilon", 1e-5)

    def normalise(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
        axis = first % x.ndim
        if node.results == 1 and x.dtype in (torch.float32, torch.float64):
            shape = x.shape[axis:]
            if scale.shape == shape and (bias is None or bias.shape == shape):
                return F.layer_norm(x, shape, scale, bias, epsilon)
        wide = _stashed(node, x)
        mean, inverse = _statistics(wide, range(axis, x.ndim), epsilon)
        y = ((wide - mean) * inverse).to(x.dtype) * scale
        if bias is not None:
            y = y + bias
        return y if node.results == 1 else (y, mean, inverse)

    return normalise


def _rms_norm(node: Node) -> Run:
    first, epsilon = node.integer("axis", -1), node.number("epsilon", 1e-5)

    def normalise(x: Tensor, scale: Tensor) -> Tensor:
        wide = _stashed(node, x)
        square = wide.square().mean(list(range(first % x.ndim, x.ndim)), keepdim=True)
        return (wide * torch.rsqrt(square + epsilon)).to(x.dtype) * scale

    return normalise


def _instance_norm(node: Node) -> Run:
    epsilon = node.number("epsilon", 1e-5)

    def normalise(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        mean, inverse = _statistics(wide, range(2, x.ndim), epsilon)
        shape = (-1, *[1] * (x.ndim - 2))
        y = (wide - mean) * (inverse * scale.to(wide.dtype).reshape(shape))
        return (y + bias.to(wide.dtype).reshape(shape)).to(x.dtype)

    return normalise


def _group_norm(node: Node) -> Run:
    groups, epsilon = int(node.required("num_groups")), node.number("epsilon", 1e-5)
    # Before opset 21 scale and bias are one a group, since then one a channel.
    by_group = node.opset < 21

    def normalise(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        wide = _stashed(node, x).reshape(x.shape[0], groups, -1)
        mean, inverse = _statistics(wide, (2,), epsilon)
        y = ((wide - mean) * inverse).to(x.dtype)
        if by_group:
            return (y * scale[:, None] + bias[:, None]).reshape(x.shape)
        shape = (-1, *[1] * (x.ndim - 2))
        return y.reshape(x.shape) * scale.reshape(shape) + bias.reshape(shape)

    return normalise


def _local_response(node: Node) -> Run:
    size = int(node.required("size"))
    alpha, beta = node.number("alpha", 1e-4), node.number("beta", 0.75)
    bias = node.number("bias", 1.0)

    def normalise(x: Tensor) -> Tensor:
        squares = x.square().flatten(2).unsqueeze(1)
        below = (size - 1) // 2
        padded = F.pad(squares, (0, 0, below, size - 1 - below))
        means = F.avg_pool2d(padded, (size, 1), 1).reshape(x.shape)
        return x / (bias + alpha * means) ** beta

    return normalise


def _mean_variance(node: Node) -> Run:
    axes = [int(axis) for axis in node.attributes.get("axes", (0, 2, 3))]

    def normalise(x: Tensor) -> Tensor:
        mean = x.mean(axes, keepdim=True)
        deviation = (x.square().mean(axes, keepdim=True) - mean.square()).sqrt()
        return (x - mean) / (deviation + 1e-9)

    return normalise


def _lp_norm(node: Node) -> Run:
    axis, p = node.integer("axis", -1), node.integer("p", 2)

    def normalise(x: Tensor) -> Tensor:
        length = norm(x, float(p), [axis], True)
        # Of a vector of zeros zeros are left.
        return torch.where(
            length == 0, torch.zeros_like(x), x / length.clamp_min(torch.finfo(x.dtype).tiny)
        )

    return normalise


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "BatchNormalization": Operator(_batch_norm),
        "GroupNormalization": Operator(_group_norm),
        "InstanceNormalization": Operator(_instance_norm),
        "LRN": Operator(_local_response),
        "LayerNormalization": Operator(_layer_norm),
        "LpNormalization": Operator(_lp_norm),
        "MeanVarianceNormalization": Operator(_mean_variance),
        "RMSNormalization": Operator(_rms_norm),
    }
)
