"""Networks from images to images: a residual one, a U-Net, and a discriminator of patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualTranslator(nn.Module):
    """Half the side and back, with residual blocks between (Johnson et al. 2016,
    arXiv:1603.08155); begins near the identity.
    """

    def __init__(self, before: int, after: int, *, width: int = 32, blocks: int = 4) -> None:
        """Fresh weights.

        Args:
            before: channels of what comes.
            after: channels of what is made.
            width: channels of the first layer.
            blocks: residual ones.

        """
        super().__init__()
        self.alike = before == after
        self.first = nn.Conv2d(before, width, 5, padding=2)
        self.down = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.blocks = nn.ModuleList(_Residual(2 * width) for _ in range(blocks))
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.last = nn.Conv2d(2 * width, after, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] in [0, 1] to [N, C', H, W] in [0, 1]."""
        seen = F.relu(_normal(self.first(x)))
        y = F.relu(_normal(self.down(seen)))
        for block in self.blocks:
            y = block(y)
        y = F.relu(_normal(self.up(_double(y, x))))
        y = self.last(torch.cat([y, seen], dim=1))
        return torch.sigmoid(y + torch.logit(x, eps=1e-2)) if self.alike else torch.sigmoid(y)


class UNet(nn.Module):
    """Down and up again, with each map handed across (Ronneberger et al. 2015, arXiv:1505.04597;
    Isola et al. 2017, arXiv:1611.07004).
    """

    def __init__(self, before: int, after: int, *, width: int = 32, depth: int = 3) -> None:
        """Fresh weights.

        Args:
            before: channels of what comes, such as an edge map.
            after: channels of what is made.
            width: channels of the first layer; each after it has twice as many.
            depth: how often the side is halved.

        """
        super().__init__()
        channels = [width * 2**number for number in range(depth + 1)]
        self.first = nn.Conv2d(before, width, 3, padding=1)
        self.downs = nn.ModuleList(
            nn.Conv2d(channels[n], channels[n + 1], 4, stride=2, padding=1) for n in range(depth)
        )
        self.ups = nn.ModuleList(
            nn.Conv2d(channels[n + 1] + channels[n], channels[n], 3, padding=1)
            for n in reversed(range(depth))
        )
        self.last = nn.Conv2d(width, after, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C', H, W] in [0, 1]."""
        maps = [F.leaky_relu(self.first(x), 0.2)]
        for down in self.downs:
            maps.append(F.leaky_relu(_normal(down(maps[-1])), 0.2))
        y = maps.pop()
        for up in self.ups:
            across = maps.pop()
            y = F.leaky_relu(_normal(up(torch.cat([_double(y, across), across], dim=1))), 0.2)
        return torch.sigmoid(self.last(y))


class PatchDiscriminator(nn.Module):
    """A logit for each patch: what is judged is texture, and the rest is left to other losses."""

    def __init__(self, channels: int, *, width: int = 32) -> None:
        """Fresh weights.

        Args:
            channels: of the images, with those of a condition beside them if there is one.
            width: of the first layer.

        """
        super().__init__()
        self.first = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.third = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.last = nn.Conv2d(2 * width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] in [0, 1] to [N, 1, H / 4, W / 4]."""
        y = F.leaky_relu(self.first(2.0 * x - 1.0), 0.2)
        y = F.leaky_relu(_normal(self.second(y)), 0.2)
        y = F.leaky_relu(_normal(self.third(y)), 0.2)
        logits: Tensor = self.last(y)
        return logits


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + _normal(self.second(F.relu(_normal(self.first(x)))))
        return y


def _normal(y: Tensor) -> Tensor:
    """Each map of each row by its own moments (instance normalisation): rows stay apart."""
    return F.instance_norm(y)


def _double(y: Tensor, like: Tensor) -> Tensor:
    """Twice the side, cut to a larger map's own."""
    wide = F.interpolate(y, scale_factor=2.0, mode="nearest")
    missing_down, missing_right = like.shape[2] - wide.shape[2], like.shape[3] - wide.shape[3]
    padded = F.pad(wide, (0, max(0, missing_right), 0, max(0, missing_down)), mode="replicate")
    return padded[:, :, : like.shape[2], : like.shape[3]]
