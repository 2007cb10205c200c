"""A generator and a discriminator of classes, for images from 28 x 28 to 128 x 128.

Strided convolutions, as DCGAN has them (Radford et al. 2016, arXiv:1511.06434): cheap to train.
The class scales and shifts every layer of the generator (de Vries et al. 2017, arXiv:1707.00683)
and is projected onto the discriminator's features (Miyato and Koyama 2018, arXiv:1802.05637).
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from firewall.generate.normalisation import Normalisation, normalised, weighted

#: Side of the smallest map inside, at least.
_BASE = 4


def levels(side: int) -> int:
    """How often the side is halved: until the smallest map is 7 or 8 wide, or less."""
    return max(2, math.ceil(math.log2(side / 8)))


class GenerativeNetwork(nn.Module):
    """Codes and classes to images."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        latent: int = 64,
        width: int = 32,
        norm: Normalisation = "batch",
    ) -> None:
        """Fresh weights.

        Args:
            shape: (C, H, W) of the images.
            classes: how many; 1 is without classes.
            latent: length of a code.
            width: channels of the last map; each one before it has twice as many, up to eight
                times.
            norm: `batch`, `virtual` or `none`.

        """
        super().__init__()
        self.shape, self.latent, self.classes = shape, latent, classes
        count = levels(max(shape[1:]))
        self.base = (
            max(_BASE, math.ceil(shape[1] / 2**count)),
            max(_BASE, math.ceil(shape[2] / 2**count)),
        )
        channels = [width * min(8, 2**number) for number in reversed(range(count))]
        self.first = nn.Linear(latent, channels[0] * self.base[0] * self.base[1])
        self.mixed = _Conditioned(channels[0], classes, norm)
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
            for before, after in itertools.pairwise(channels)
        )
        self.mixes = nn.ModuleList(_Conditioned(one, classes, norm) for one in channels[1:])
        self.last = nn.ConvTranspose2d(channels[-1], shape[0], 4, stride=2, padding=1)

    def forward(self, code: Tensor, label: Tensor) -> Tensor:
        """[N, latent] codes and [N] classes to [N, C, H, W] in [0, 1]."""
        y = self.mixed(self.first(code).view(len(code), -1, *self.base), label)
        for up, mix in zip(self.ups, self.mixes, strict=True):
            y = mix(up(y), label)
        y = self.last(y)
        _, height, width = self.shape
        top, left = (y.shape[2] - height) // 2, (y.shape[3] - width) // 2
        image: Tensor = torch.sigmoid(y[:, :, top : top + height, left : left + width])
        return image


class _Conditioned(nn.Module):
    """Normalised, scaled and shifted by class, bent."""

    def __init__(self, channels: int, classes: int, norm: Normalisation) -> None:
        super().__init__()
        self.norm = normalised(norm, channels)
        self.scale, self.shift = nn.Embedding(classes, channels), nn.Embedding(classes, channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        scale, shift = self.scale(label)[:, :, None, None], self.shift(label)[:, :, None, None]
        return F.leaky_relu(self.norm(x) * scale + shift, 0.2)


class DiscriminativeNetwork(nn.Module):
    """Images and classes to a logit of "real"."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        width: int = 32,
        norm: Normalisation = "spectral",
        compared: bool = True,
    ) -> None:
        """Fresh weights.

        Args:
            shape: (C, H, W) of the images.
            classes: how many.
            width: channels of the first layer; each after it has twice as many, up to eight times.
            norm: any of them.
            compared: whether it sees how alike the rows of a batch are.

        """
        super().__init__()
        self.compared = compared
        count = levels(max(shape[1:]))
        channels = [shape[0], *(width * min(8, 2**number) for number in range(count))]
        self.downs = nn.ModuleList(
            weighted(norm, nn.Conv2d(before, after, 4, stride=2, padding=1))
            for before, after in itertools.pairwise(channels)
        )
        # The first layer sees pixels, whose moments say what they show.
        self.norms = nn.ModuleList(
            nn.Identity() if number == 0 else normalised(norm, one)
            for number, one in enumerate(channels[1:])
        )
        # One more channel: how alike the rows of a batch are (Karras et al. 2018,
        # arXiv:1710.10196), by which a generator of few pictures gives itself away.
        self.second = weighted(norm, nn.Conv2d(channels[-1] + 1, channels[-1], 3, padding=1))
        self.last = weighted(norm, nn.Linear(channels[-1], 1))
        self.classes = weighted(norm, nn.Embedding(classes, channels[-1]))
        # Only an auxiliary loss looks at it.
        self.kind = nn.Linear(channels[-1], classes)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """[N, C, H, W] in [0, 1] and [N] classes to [N]."""
        return self.judge(x, label)[0]

    def judge(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and [N, K] logits of the class that it takes each image for."""
        y = 2.0 * x - 1.0
        for down, norm in zip(self.downs, self.norms, strict=True):
            y = F.leaky_relu(norm(down(y)), 0.2)
        apart = _spread(y) if self.compared else torch.zeros_like(y[:, :1])
        y = self.second(torch.cat([y, apart], dim=1))
        features = F.leaky_relu(y, 0.2).mean(dim=(2, 3)) * math.sqrt(y.shape[2] * y.shape[3])
        logit: Tensor = self.last(features)[:, 0]
        projected: Tensor = (self.classes(label) * features).sum(dim=1) / math.sqrt(
            features.shape[1]
        )
        return logit + projected, self.kind(features)


def _spread(y: Tensor, group: int = 4) -> Tensor:
    """[N, 1, H, W]: mean deviation within groups of rows; 0 where the batch is no multiple."""
    rows, _, height, width = y.shape
    if rows % group or rows < group:
        return y.new_zeros(rows, 1, height, width)
    grouped = y.reshape(group, rows // group, -1)
    deviation = (grouped - grouped.mean(dim=0)).square().mean(dim=0).add(1e-8).sqrt().mean(dim=1)
    return deviation.repeat(group).view(rows, 1, 1, 1).expand(rows, 1, height, width)
