"""CycleGAN: from one folder's look to another's, without pairs (Zhu et al. 2017, arXiv:1703.10593).

There and back again is to give the image itself (the cycle), and what already has the look is to
stay as it is (identity). Its job here: bring training images into the deployed camera's look, or
forgeries into that of clean images.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from firewall.bundle.spec import Spec
from firewall.errors import TrainingError
from firewall.generate.grid import write_grid
from firewall.generate.loop import Player, draws, play
from firewall.generate.losses import gan_loss
from firewall.generate.pool import ImagePool
from firewall.generate.translation_networks import PatchDiscriminator, ResidualTranslator

_SHOWN = 8


class CycleSpec(Spec):
    """Settings; what the paper has, where a processor can pay for it."""

    steps: int = Field(default=10_000, ge=1, le=10_000_000)
    #: Images of each side in a step.
    batch: int = Field(default=16, ge=1, le=4096)
    #: Learning rate of all four networks; falls to nothing over the second half.
    rate: float = Field(default=2e-4, gt=0, le=1)
    #: Weight of the way there and back.
    cycle: float = Field(default=10.0, ge=0, le=1e4)
    #: Of leaving alone what has the look already, as a share of `cycle`.
    identity: float = Field(default=0.5, ge=0, le=10)
    #: Generated images that are kept for the discriminators.
    pool: int = Field(default=50, ge=1, le=100_000)
    #: Channels of the first layers, and residual blocks between.
    width: int = Field(default=16, ge=4, le=512)
    blocks: int = Field(default=3, ge=1, le=32)


@dataclass(frozen=True)
class Cycle:
    """What a run leaves: both ways, frozen, and the log."""

    there: ResidualTranslator
    back: ResidualTranslator
    log: list[dict[str, Any]]


def fit_cycle(
    first: Tensor,
    second: Tensor,
    spec: CycleSpec,
    folder: Path,
    *,
    seed: int,
    progress: Callable[[str], None] = lambda line: None,
) -> Cycle:
    """Learn both ways.

    Args:
        first: [N, C, H, W] uint8, of one look.
        second: [M, C, H, W] uint8, of the other; nothing pairs them.
        spec: how.
        folder: for checkpoints and pictures.
        seed: of every draw.
        progress: told each checkpoint.

    Raises:
        TrainingError: a side has fewer than two images, the sides differ in size, or a loss is no
            longer a number.

    """
    for name, one in (("first", first), ("second", second)):
        if len(one) < 2:
            raise TrainingError(
                f"translate: the {name} side has {len(one)} images; two are the least, hundreds "
                "are wanted"
            )
    if first.shape[1:] != second.shape[1:]:
        raise TrainingError(
            f"translate: images of {list(first.shape[1:])} and of {list(second.shape[1:])}; both "
            "sides need one size and as many channels"
        )
    game = _Game(first, second, spec, seed)
    log = play(
        game, spec.steps, folder, name="translation",
        advice=f"lower the rate, which is {spec.rate:g}", progress=progress,
    )  # fmt: skip
    there, back = (one.eval().requires_grad_(False) for one in (game.there, game.back))
    return Cycle(there, back, log)


class _Game:
    """Two translators and two discriminators."""

    def __init__(self, first: Tensor, second: Tensor, spec: CycleSpec, seed: int) -> None:
        self.sides, self.spec, self.seed, self.step = (first, second), spec, seed, 0
        channels = first.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.there, self.back = (
                ResidualTranslator(channels, channels, width=spec.width, blocks=spec.blocks)
                for _ in range(2)
            )
            judges = [PatchDiscriminator(channels, width=2 * spec.width) for _ in range(2)]
        both = nn.ModuleList([self.there, self.back])
        self.players = {
            "translators": Player(both, spec.rate, (0.5, 0.999)),
            "first": Player(judges[0], spec.rate, (0.5, 0.999)),
            "second": Player(judges[1], spec.rate, (0.5, 0.999)),
        }
        self.pools = (ImagePool(spec.pool), ImagePool(spec.pool))
        self.loss = gan_loss("least-squares")

    def play(self) -> dict[str, float]:
        """One step of all four."""
        generator = draws(self.seed, self.step)
        share = min(1.0, 2.0 * (1.0 - self.step / self.spec.steps))
        for player in self.players.values():
            for group in player.optimiser.param_groups:
                group["lr"] = self.spec.rate * share
        x, y = (self._batch(one, generator) for one in self.sides)
        made_y, made_x = self.there(x), self.back(y)
        judges = (self.players["first"].network, self.players["second"].network)
        fooling = x.new_zeros(())
        for judge, made in zip(judges, (made_x, made_y), strict=True):
            judge.requires_grad_(False)
            logits = judge(made)
            fooling = fooling + self.loss.generator(logits, logits)
        cycle = F.l1_loss(self.back(made_y), x) + F.l1_loss(self.there(made_x), y)
        same = F.l1_loss(self.back(x), x) + F.l1_loss(self.there(y), y)
        weight = self.spec.cycle
        self.players["translators"].update(fooling + weight * (cycle + self.spec.identity * same))
        figures = {"fooling": float(fooling.detach()), "cycle": float(cycle.detach()) / 2}
        for name, real, made, pool in (
            ("first", x, made_x, self.pools[0]), ("second", y, made_y, self.pools[1]),
        ):  # fmt: skip
            judge = self.players[name].network.requires_grad_(True)
            old = pool.exchange(made, generator)
            loss = self.loss.discriminator(judge(real), judge(old))
            self.players[name].update(loss)
            figures[f"judge_{name}"] = float(loss.detach())
        self.step += 1
        return figures

    def _batch(self, side: Tensor, generator: torch.Generator) -> Tensor:
        rows = torch.randint(0, len(side), (self.spec.batch,), generator=generator)
        return side[rows].float() / 255

    def state(self) -> dict[str, Any]:
        """All four networks, and the pools."""
        return {name: one.state() for name, one in self.players.items()} | {
            "pools": [pool.images for pool in self.pools]
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take it back."""
        for name, one in self.players.items():
            one.load(state[name])
        for pool, images in zip(self.pools, state["pools"], strict=True):
            pool.images = list(images)

    def look(self, path: Path) -> dict[str, Any]:
        """In columns: an image, how it looks there, and how it comes back; for both sides."""
        with torch.no_grad():
            columns: list[Tensor] = []
            for side, go, come in (
                (self.sides[0], self.there, self.back), (self.sides[1], self.back, self.there),
            ):  # fmt: skip
                x = side[:_SHOWN].float() / 255
                columns += [x, go(x), come(go(x))]
        rows = min(len(one) for one in columns)
        ordered = itertools.chain.from_iterable(zip(*(one[:rows] for one in columns), strict=True))
        write_grid(torch.stack(list(ordered)), path, len(columns))
        return {}

    def alarm(self, log: list[dict[str, Any]]) -> str:
        """None is known."""
        return ""
