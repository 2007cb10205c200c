"""Normalisation inside generators and discriminators.

- `batch`: usual in generators; rows of a batch then depend on each other.
- `virtual`: by a reference batch that is fixed once (Salimans et al. 2016, arXiv:1606.03498): as
  calm as `batch`, and rows leave each other alone. Twice the cost.
- `spectral`: of weights, by their largest singular value (Miyato et al. 2018, arXiv:1802.05957);
  for discriminators: keeps them from becoming steep, without a penalty to pay for.
- `none`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Normalisation = Literal["batch", "virtual", "spectral", "none"]


class VirtualBatchNorm(nn.Module):
    """[N, C, H, W] by the moments of a reference batch and, by one part in it, of the row itself.

    `refer` must have seen the reference batch: it keeps the moments, with their graph while weights
    are trained, and as they were last when rows are generated later.
    """

    def __init__(self, channels: int, reference_rows: int = 64) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.mean: Tensor
        self.square: Tensor
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("square", torch.ones(1, channels, 1, 1))
        self.share = 1.0 / (reference_rows + 1.0)
        #: Whether what comes now is the reference batch.
        self.referring = False
        self._live: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalised, scaled and shifted."""
        if self.referring:
            mean = x.mean(dim=(0, 2, 3), keepdim=True)
            square = x.square().mean(dim=(0, 2, 3), keepdim=True)
            self._live = (mean, square)
            self.mean, self.square = mean.detach(), square.detach()
        else:
            before = self._live if self.training and self._live is not None else None
            old_mean, old_square = before or (self.mean, self.square)
            mean = self.share * x.mean(dim=(2, 3), keepdim=True) + (1 - self.share) * old_mean
            square = (
                self.share * x.square().mean(dim=(2, 3), keepdim=True)
                + (1 - self.share) * old_square
            )
        deviation = (square - mean.square()).clamp_min(0.0).add(1e-5).sqrt()
        return (x - mean) / deviation * self.scale + self.shift


def refer(network: nn.Module, *reference: Tensor) -> None:
    """Show the reference batch to every virtual batch norm of a network, if it has any.

    Args:
        network: called with the batch.
        reference: its arguments.

    """
    layers = [one for one in network.modules() if isinstance(one, VirtualBatchNorm)]
    if not layers:
        return
    for one in layers:
        one.referring = True
    try:
        network(*reference)
    finally:
        for one in layers:
            one.referring = False


def forget(network: nn.Module) -> None:
    """Drop the graphs that reference moments hold, after a step."""
    for one in network.modules():
        if isinstance(one, VirtualBatchNorm):
            one._live = None


def normalised(kind: Normalisation, channels: int) -> nn.Module:
    """The layer behind a convolution."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "virtual":
        return VirtualBatchNorm(channels)
    return nn.Identity()


def weighted(kind: Normalisation, layer: nn.Module) -> nn.Module:
    """The convolution or linear map itself."""
    if kind != "spectral":
        return layer
    found: nn.Module = nn.utils.parametrizations.spectral_norm(layer)
    return found
