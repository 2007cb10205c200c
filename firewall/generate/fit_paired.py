"""From a condition to the image that belongs to it: edges to pictures, small ones to large ones,
forged ones to clean ones.

The distance to the true image says what is to be there, the discriminator of patches that it must
not be blurred (Isola et al. 2017, arXiv:1611.07004). By what the condition is, it is image-to-image
translation, super-resolution (Ledig et al. 2017, arXiv:1609.04802), or a denoiser that takes
perturbations out (APE-GAN, Jin et al. 2019, arXiv:1707.05474).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from firewall.bundle.spec import Spec
from firewall.errors import TrainingError
from firewall.generate.grid import write_grid
from firewall.generate.loop import Player, draws, play
from firewall.generate.losses import gan_loss
from firewall.generate.translation_networks import PatchDiscriminator, ResidualTranslator, UNet
from firewall.train.fit_network import Images

#: Images [N, C, H, W] in [0, 1], their classes [N] and a generator of draws to conditions
#: [N, C', H, W] in [0, 1].
Condition = Callable[[Tensor, Tensor, Generator], Tensor]
_SHOWN = 8
#: Of a U-Net of three levels: its smallest map must have moments.
_UNET_SIDE = 16


class Pairs(Protocol):
    """Conditions and the images that belong to them."""

    def __len__(self) -> int:
        """How many."""

    def draw(self, rows: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Of rows [N]: conditions [N, C', H, W] and images [N, C, H, W], both in [0, 1]."""


@dataclass(frozen=True)
class MadePairs:
    """Images, and conditions that are made of them."""

    data: Images
    condition: Condition

    def __len__(self) -> int:
        return len(self.data)

    def draw(self, rows: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """As `Pairs` says."""
        x, label = self.data.batch(rows, torch.device("cpu"))
        return self.condition(x, label, generator).detach(), x


@dataclass(frozen=True)
class GivenPairs:
    """Conditions [N, C', H, W] and images [N, C, H, W] as they came, uint8."""

    conditions: Tensor
    images: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, rows: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """As `Pairs` says."""
        return self.conditions[rows].float() / 255, self.images[rows].float() / 255


class PairedSpec(Spec):
    """Settings."""

    #: `unet` hands every detail across: edges to pictures. `residual` begins near the identity:
    #: denoisers and super-resolution.
    network: Literal["unet", "residual"] = "unet"
    steps: int = Field(default=5000, ge=1, le=10_000_000)
    batch: int = Field(default=32, ge=1, le=4096)
    rate: float = Field(default=2e-4, gt=0, le=1)
    #: Weight of the mean absolute distance beside 1 of the discriminator; the larger, the truer and
    #: the more blurred.
    distance: float = Field(default=100.0, ge=0, le=1e5)
    #: Of the discriminator; 0 is without, and a plain regression.
    adversarial: float = Field(default=1.0, ge=0, le=1e3)
    width: int = Field(default=16, ge=4, le=512)


@dataclass(frozen=True)
class Paired:
    """What a run leaves: conditions [N, C', H, W] to images, frozen, and the log."""

    network: nn.Module
    log: list[dict[str, Any]]


def fit_paired(
    pairs: Pairs,
    spec: PairedSpec,
    folder: Path,
    *,
    seed: int,
    progress: Callable[[str], None] = lambda line: None,
) -> Paired:
    """Learn from images and what is made of them.

    Args:
        pairs: what comes, and what is to be made of it.
        spec: how.
        folder: for checkpoints and pictures.
        seed: of every draw.
        progress: told each checkpoint.

    Raises:
        TrainingError: there are fewer than two images, or a loss is no longer a number.

    """
    if len(pairs) < 2:
        raise TrainingError(f"translate: {len(pairs)} images to learn from; bring more")
    side = min(pairs.draw(torch.arange(2), draws(seed, 0))[0].shape[2:])
    if spec.network == "unet" and side < _UNET_SIDE:
        raise TrainingError(
            f"translate: a side of {side} pixels; the network 'unet' halves it three times and "
            f"takes {_UNET_SIDE} at least: take 'residual', or larger images"
        )
    game = _Game(pairs, spec, seed)
    log = play(
        game, spec.steps, folder, name="translation",
        advice=f"lower the rate, which is {spec.rate:g}", progress=progress,
    )  # fmt: skip
    return Paired(game.network.eval().requires_grad_(False), log)


def make_paired(spec: PairedSpec, before: int, after: int) -> nn.Module:
    """A network with fresh weights, from `before` channels to `after`."""
    if spec.network == "unet":
        return UNet(before, after, width=spec.width)
    return ResidualTranslator(before, after, width=spec.width)


class _Game:
    def __init__(self, pairs: Pairs, spec: PairedSpec, seed: int) -> None:
        self.pairs, self.spec = pairs, spec
        self.seed, self.step = seed, 0
        seen, x = pairs.draw(torch.arange(2), draws(seed, 0))
        before, after = seen.shape[1], x.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = make_paired(spec, before, after)
            judge = PatchDiscriminator(before + after, width=2 * spec.width)
        self.players = {
            "network": Player(self.network, spec.rate, (0.5, 0.999)),
            "judge": Player(judge, spec.rate, (0.5, 0.999)),
        }
        self.loss = gan_loss("least-squares")

    def play(self) -> dict[str, float]:
        """One step of both."""
        generator = draws(self.seed, self.step)
        rows = torch.randint(0, len(self.pairs), (self.spec.batch,), generator=generator)
        seen, x = self.pairs.draw(rows, generator)
        made = self.network(seen)
        distance = F.l1_loss(made, x)
        total = self.spec.distance * distance
        judge = self.players["judge"].network
        figures = {"distance": float(distance.detach())}
        if self.spec.adversarial:
            judge.requires_grad_(False)
            logits = judge(torch.cat([seen, made], dim=1))
            total = total + self.spec.adversarial * self.loss.generator(logits, logits)
        self.players["network"].update(total)
        if self.spec.adversarial:
            judge.requires_grad_(True)
            real = judge(torch.cat([seen, x], dim=1))
            loss = self.loss.discriminator(real, judge(torch.cat([seen, made.detach()], dim=1)))
            self.players["judge"].update(loss)
            figures["judge"] = float(loss.detach())
        self.step += 1
        return figures

    def state(self) -> dict[str, Any]:
        """Both networks."""
        return {name: one.state() for name, one in self.players.items()}

    def load(self, state: dict[str, Any]) -> None:
        """Take it back."""
        for name, one in self.players.items():
            one.load(state[name])

    def look(self, path: Path) -> dict[str, Any]:
        """In columns: the condition, what is made of it, and the true image."""
        rows = torch.arange(min(_SHOWN, len(self.pairs)))
        seen, x = self.pairs.draw(rows, draws(self.seed, 0))
        with torch.no_grad():
            made = self.network(seen)
        if seen.shape[1] != x.shape[1]:
            seen = seen.mean(dim=1, keepdim=True).expand_as(x)
        write_grid(torch.stack([seen, made, x], dim=1).flatten(0, 1), path, 3)
        return {}

    def alarm(self, log: list[dict[str, Any]]) -> str:
        """None is known."""
        return ""


def edges(x: Tensor, label: Tensor, generator: Generator) -> Tensor:
    """[N, C, H, W] to [N, 1, H, W]: where brightness changes, by Sobel's filters."""
    grey = x.mean(dim=1, keepdim=True)
    kernel = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]])
    both = torch.stack([kernel, kernel.T])[:, None] / 4.0
    slopes = F.conv2d(F.pad(grey, (1,) * 4, mode="replicate"), both)
    strength: Tensor = slopes.square().sum(dim=1, keepdim=True).add(1e-12).sqrt()
    return strength.clamp(0.0, 1.0)


def shrunk(factor: int) -> Condition:
    """Images at a fraction of their size, brought back by bicubic interpolation: what
    super-resolution has to better.
    """

    def condition(x: Tensor, label: Tensor, generator: Generator) -> Tensor:
        small = F.avg_pool2d(x, factor, ceil_mode=True)
        back = F.interpolate(small, size=x.shape[2:], mode="bicubic", align_corners=False)
        return back.clamp(0.0, 1.0)

    return condition
