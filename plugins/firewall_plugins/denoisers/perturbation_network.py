"""The network of learned denoisers: what is to be added to an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PerturbationNetwork(nn.Module):
    """A small autoencoder with one connection across; each channel of an image by itself."""

    def __init__(self, width: int) -> None:
        """Weights that are always the same, and answer 0.

        Args:
            width: channels of the first layer.

        """
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.down = nn.Conv2d(1, width, 3, padding=1)
            self.deep = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
            self.within = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
            self.up = nn.Conv2d(2 * width, width, 3, padding=1)
            self.out = nn.Conv2d(2 * width, 1, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to what is to be added to it, as large."""
        channels, height, width = x.shape[1:]
        y = x.reshape(-1, 1, height, width)
        flat = F.relu(self.down(y))
        deep = F.relu(self.within(F.relu(self.deep(flat))))
        wide = doubled(F.relu(self.up(deep)), height, width)
        left: Tensor = self.out(torch.cat([flat, wide], dim=1))
        return left.reshape(-1, channels, height, width)


def doubled(y: Tensor, height: int, width: int) -> Tensor:
    """Every value twice along both sides, in operators that every runtime has; at least half of
    `height` and `width`, rounded down, comes in.
    """
    half = y[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
    wide = half.reshape(-1, half.shape[1], 2 * half.shape[2], 2 * half.shape[4])
    wide = wide[:, :, :height, :width]
    missing = (0, width - wide.shape[3], 0, height - wide.shape[2])
    return F.pad(wide, missing, mode="replicate") if any(missing) else wide
