"""CROWN-IBP (Zhang et al. 2020, arXiv:1906.06316): a linear lower bound of the leads, taken
backwards through the network, with interval bounds of what goes into each ReLU.

Tighter than intervals alone where the network is not used to them, which is at the beginning of
training; it costs one backward pass a class. For training only: rounding is not bounded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from firewall.guard.interval import Interval, affine, margins


def backward_leads(
    convolutions: Sequence[nn.Conv2d],
    hidden: nn.Linear,
    last: nn.Linear,
    within: Interval,
    label: Tensor,
) -> tuple[Tensor, Tensor]:
    """Leads of convolutions, flattening and a hidden layer, each with ReLU, and a last layer.

    Args:
        convolutions: zeros around the image.
        hidden: linear, on the flattened last convolution.
        last: linear, to K classes.
        within: the box of images [N, C, H, W].
        label: [N], the class that leads.

    Returns:
        [N, K] by the linear bound and [N, K] by intervals; 0 for the class itself.

    """
    # Forward: intervals of every pre-activation.
    before: list[Interval] = []
    at = within
    for layer in convolutions:
        before.append(affine(at, layer))
        at = before[-1].through(F.relu)
    shape = at.lower.shape
    at = Interval(at.lower.flatten(1), at.upper.flatten(1))
    before.append(affine(at, hidden))
    at = before[-1].through(F.relu)
    plain = margins(at, last, label)
    # Backward: leads >= slope . z + offset, for z further and further back.
    slope = last.weight[label].unsqueeze(1) - last.weight.unsqueeze(0)
    offset = last.bias[label].unsqueeze(1) - last.bias
    slope, offset = _through_relu(slope, offset, before[-1])
    offset = offset + slope @ hidden.bias
    slope = slope @ hidden.weight
    classes = slope.shape[1]
    for number in reversed(range(len(convolutions))):
        layer = convolutions[number]
        slope = slope.reshape(-1, classes, *before[number].lower.shape[1:])
        slope, offset = _through_relu(slope, offset, before[number])
        assert layer.bias is not None
        offset = offset + (slope.sum(dim=(3, 4)) * layer.bias).sum(dim=2)
        inside = before[number - 1].lower.shape if number else within.lower.shape
        slope = _transposed(layer, slope.flatten(0, 1), inside).reshape(-1, classes, *inside[1:])
    assert shape[0] == slope.shape[0]
    centre, reach = (within.upper + within.lower) / 2, (within.upper - within.lower) / 2
    flat = slope.flatten(2)
    found = offset + torch.einsum("nkf,nf->nk", flat, centre.flatten(1))
    found = found - torch.einsum("nkf,nf->nk", flat.abs(), reach.flatten(1))
    return found.scatter(1, label[:, None], 0.0), plain


def _through_relu(slope: Tensor, offset: Tensor, before: Interval) -> tuple[Tensor, Tensor]:
    """[N, K, ...] slopes of max(z, 0) to slopes of z, with z in [N, ...] intervals."""
    lower, upper = before.lower.clamp_max(0.0), before.upper.clamp_min(0.0)
    above = upper / (upper - lower).clamp_min(1e-8)
    below = (upper > -lower).to(slope.dtype)
    # What is always on has slope 1 both ways: upper / (upper - 0).
    up, down = slope.clamp_min(0.0), slope.clamp_max(0.0)
    moved = up * below.unsqueeze(1) + down * above.unsqueeze(1)
    lost = down * (-above * lower).unsqueeze(1)
    return moved, offset + lost.flatten(2).sum(dim=2)


def _transposed(layer: nn.Conv2d, slope: Tensor, inside: Sequence[int]) -> Tensor:
    """Slopes of a convolution's outputs to slopes of its inputs."""
    assert isinstance(layer.padding, tuple)
    stride, padding, kernel = layer.stride, layer.padding, layer.kernel_size
    # What the strides leave over at the far edges.
    over = [
        inside[2 + axis] - ((slope.shape[2 + axis] - 1) * stride[axis] - 2 * int(padding[axis])
                            + kernel[axis])
        for axis in range(2)
    ]  # fmt: skip
    return F.conv_transpose2d(
        slope, layer.weight, None, stride, (int(padding[0]), int(padding[1])), (over[0], over[1])
    )
