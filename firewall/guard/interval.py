"""Interval bound propagation (Gowal et al. 2018, arXiv:1810.12715): what a network's outputs can be
at most and at least while its input stays in a box.

With `rounding` the bounds hold for the numbers that a machine computes and not only for the real
ones: a sum of n products is off by at most gamma_n = n u / (1 - n u) times the sum of their
magnitudes, in whatever order it is taken (Higham 2002, "Accuracy and Stability of Numerical
Algorithms", section 3.1), u being 2^-24. This covers fused and blocked sums; it does not cover
Winograd convolutions, TF32 or bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Of float32.
UNIT_ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class Interval:
    """Everything between two tensors of one shape."""

    lower: Tensor
    upper: Tensor

    def through(self, monotone: Callable[[Tensor], Tensor]) -> Interval:
        """After a function that does not decrease in any of its values."""
        return Interval(monotone(self.lower), monotone(self.upper))


def box(x: Tensor, radius: Tensor | float, *, rounding: bool = False) -> Interval:
    """All images within an L-infinity radius.

    Args:
        x: [N, C, H, W] in [0, 1].
        radius: one, or [N, 1, 1, 1].
        rounding: bounds for what a machine computes.

    """
    hair = 4 * UNIT_ROUNDOFF if rounding else 0.0
    lower = (x - radius - hair).clamp(0.0, 1.0)
    return Interval(lower, (x + radius + hair).clamp(0.0, 1.0))


def affine(within: Interval, layer: nn.Conv2d | nn.Linear, *, rounding: bool = False) -> Interval:
    """After a convolution (zeros around the image) or a linear layer."""
    weight, bias = layer.weight, layer.bias
    centre, reach = (within.upper + within.lower) / 2, (within.upper - within.lower) / 2
    slack = _slack(weight[0].numel()) if rounding else 0.0
    if rounding:
        # The centre's own sum is off by gamma, and so is the served network's at any point. Not
        # `reach * (1 + slack)`: the exporter to ONNX takes a factor so near 1 for 1 and drops it.
        reach = reach + slack * (2 * centre.abs() + 3 * reach)
    if isinstance(layer, nn.Conv2d):
        if layer.dilation != (1, 1) or layer.groups != 1 or layer.padding_mode != "zeros":
            raise TypeError("bounds are for plain convolutions")
        middle = F.conv2d(centre, weight, bias, layer.stride, layer.padding)
        spread = F.conv2d(reach, weight.abs(), None, layer.stride, layer.padding)
    else:
        middle = F.linear(centre, weight, bias)
        spread = F.linear(reach, weight.abs())
    if rounding:
        spread = spread + slack * (spread + 2 * (middle.abs() + _by_channel(bias, middle)))
    return Interval(middle - spread, middle + spread)


def margins(within: Interval, last: nn.Linear, label: Tensor, *, rounding: bool = False) -> Tensor:
    """Least lead of one class over each other after the last layer.

    The difference of two rows of weights is taken before the bound, which is tighter than the
    difference of two bounds.

    Args:
        within: [N, F], what goes into the layer.
        last: to K classes.
        label: [N], the class that leads.
        rounding: bounds for what a machine computes.

    Returns:
        [N, K]; 0 for the class itself.

    """
    weight, bias = last.weight, last.bias
    centre, reach = (within.upper + within.lower) / 2, (within.upper - within.lower) / 2
    apart = weight[label].unsqueeze(1) - weight.unsqueeze(0)
    lead = torch.einsum("nkf,nf->nk", apart, centre) + (bias[label].unsqueeze(1) - bias)
    lead = lead - torch.einsum("nkf,nf->nk", apart.abs(), reach)
    if rounding:
        slack = _slack(weight.shape[1] + 2)
        # Two logits are computed, each with its own sum; the bound is a third.
        sizes = F.linear(centre.abs() + reach, weight.abs()) + bias.abs()
        mine = sizes.gather(1, label[:, None])
        lead = lead - 4 * slack * (sizes + mine)
    return lead.scatter(1, label[:, None], 0.0)


def least_lead(leads: Tensor, label: Tensor) -> Tensor:
    """[N, K] margins to [N]: the least over the classes that are not the label."""
    return leads.scatter(1, label[:, None], torch.inf).amin(dim=1)


def _slack(products: int) -> float:
    # The bias is a term as well; the centre and the last difference are rounded once each.
    terms = products + 4
    return terms * UNIT_ROUNDOFF / (1 - terms * UNIT_ROUNDOFF)


def _by_channel(bias: Tensor | None, like: Tensor) -> Tensor:
    if bias is None:
        return torch.zeros(())
    return bias.abs().view(1, -1, *[1] * (like.ndim - 2))
