"""The game itself: steps, the averaged generator, alarms, and a checkpoint to go on from.

A run that is killed and started again ends with the same bits: every draw of a step comes from the
seed and the step's number.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from firewall.errors import TrainingError
from firewall.generate.augment import diff_augment
from firewall.generate.grid import write_grid
from firewall.generate.loop import Player, draws, play
from firewall.generate.losses import gan_loss, gradient_penalty
from firewall.generate.networks import DiscriminativeNetwork, GenerativeNetwork
from firewall.generate.normalisation import forget, refer
from firewall.generate.private import PrivateRows
from firewall.generate.spec import GanSpec
from firewall.train.fit_network import Images

Network = TypeVar("Network", bound=nn.Module)

#: D is saturated when real rows are more real than this and generated ones less than its
#: complement, for so many lines of the log in a row.
_SURE, _LINES = 0.98, 5
#: Collapse: samples of a class lie this much nearer to each other than its real images.
_ALIKE = 0.3
_GRID_ROWS = 8


@dataclass(frozen=True)
class Trained:
    """What a run leaves.

    Attributes:
        generator: the averaged one.
        discriminator: as it was last.
        log: an entry each hundred steps.

    """

    generator: GenerativeNetwork
    discriminator: DiscriminativeNetwork
    log: list[dict[str, Any]]


def make_players(
    spec: GanSpec, shape: tuple[int, int, int], classes: int, seed: int
) -> tuple[GenerativeNetwork, DiscriminativeNetwork]:
    """Fresh weights from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = GenerativeNetwork(
            shape, classes, latent=spec.latent, width=spec.width, norm=spec.norm
        )
        discriminator = DiscriminativeNetwork(
            shape,
            classes,
            width=spec.width_discriminator,
            norm=spec.norm_discriminator,
            compared=spec.private is None,
        )
    return generator, discriminator


def fit_gan(
    data: Images,
    classes: int,
    spec: GanSpec,
    folder: Path,
    *,
    seed: int,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Play the game.

    Args:
        data: what is imitated, [N, C, H, W] uint8 with labels.
        classes: how many.
        spec: how.
        folder: for `checkpoint.pt`, `log.jsonl` and sample grids.
        seed: of every draw.
        device: `cpu` or `cuda`.
        progress: told each checkpoint.

    Raises:
        TrainingError: there are too few images, or a loss is no longer a number; the last good
            checkpoint is kept.

    """
    if len(data) < spec.batch:
        raise TrainingError(
            f"augment: {len(data)} training images for a batch of {spec.batch}; bring more or "
            "lower augment.batch"
        )
    shape = (data.x.shape[1], data.x.shape[2], data.x.shape[3])
    game = GanGame(*make_players(spec, shape, classes, seed), data, classes, spec, seed, device)
    log = play(
        game, spec.steps, folder, name="generator",
        advice=f"lower augment.rate, which is {spec.rate:g}, or raise augment.r1",
        progress=progress,
    )  # fmt: skip
    return Trained(game.averaged, game.discriminator.cpu().eval().requires_grad_(False), log)


def saturated(log: list[dict[str, Any]]) -> str:
    """Whether D has been sure of everything for a while: then G learns nothing."""
    last = log[-_LINES:]
    sure = [one["real"] > _SURE and one["generated"] < 1 - _SURE for one in last]
    if len(last) < _LINES or not all(sure):
        return ""
    return (
        "the discriminator is sure of every image, the generator learns little; take "
        "'non-saturating', raise r1, or lower rate_discriminator"
    )


def collapsed(spread: float) -> str:
    """Whether samples of a class are all but alike."""
    if spread > _ALIKE:
        return ""
    return (
        f"collapse: samples of a class lie {spread:.0%} as far apart as its real images; raise r1, "
        "take 'relativistic', or lower the rates"
    )


def _channels_last(network: Network) -> Network:
    """In place; what torch's stubs do not know of."""
    to: Any = network.to
    to(memory_format=torch.channels_last)
    return network


class GanGame:
    """Both players, their optimisers, and the averaged generator."""

    def __init__(
        self,
        generator: GenerativeNetwork,
        discriminator: DiscriminativeNetwork,
        data: Images,
        classes: int,
        spec: GanSpec,
        seed: int,
        device: str,
    ) -> None:
        # It stays on the processor, and is copied before the game's own moves away.
        self.averaged = copy.deepcopy(generator).eval().requires_grad_(False)
        # Convolutions of so few channels are quicker with the channels last.
        self.generator = _channels_last(generator.to(device))
        self.discriminator = _channels_last(discriminator.to(device))
        self.data, self.classes, self.spec, self.seed = data, classes, spec, seed
        self.device = torch.device(device)
        self.loss = gan_loss(spec.loss, spec.smoothing)
        self.step = 0
        betas = (0.0, spec.beta)
        self.players = {
            "generator": Player(self.generator, spec.rate, betas),
            "discriminator": Player(self.discriminator, spec.rate_discriminator, betas),
        }
        #: Of virtual batch norms, the same at every step.
        fixed = torch.Generator().manual_seed(seed)
        self.reference_code = torch.randn(64, spec.latent, generator=fixed).to(self.device)
        rows = torch.randint(0, len(data), (64,), generator=fixed)
        self.reference, self.reference_label = data.batch(rows, self.device)
        self.private = None
        if spec.private is not None:
            self.private = PrivateRows(self.discriminator, spec.private, len(data), spec.batch)

    def play(self) -> dict[str, float]:
        """One step of G after `ratio` of D; figures of both."""
        generator = draws(self.seed, self.step)
        figures: dict[str, float] = {}
        for turn in range(self.spec.ratio):
            figures |= self._discriminate(generator, self.step * self.spec.ratio + turn)
        figures |= self._generate(generator)
        self.step += 1
        self._average()
        return figures

    def _codes(self, generator: Generator, of: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Codes, of classes that are drawn, or of given ones."""
        size = self.spec.batch if of is None else len(of)
        code = torch.randn(size, self.spec.latent, generator=generator)
        label = torch.randint(0, self.classes, (size,), generator=generator) if of is None else of
        return code.to(self.device), label.to(self.device)

    def _pairs(
        self, generator: Generator, reals: bool
    ) -> tuple[tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor]]:
        """Real images where they are looked at, and codes; of the same classes, row by row, for a
        loss that compares rows: it asks which of two images of a class is more real.
        """
        paired = self.spec.loss == "relativistic"
        found = self._real(generator) if reals or paired else None
        of = found[1] if found is not None and paired else None
        return found, self._codes(generator, of)

    def _real(self, generator: Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(0, len(self.data), (self.spec.batch,), generator=generator)
        return self.data.batch(rows, self.device)

    def _refer(self) -> None:
        refer(self.generator, self.reference_code, self.reference_label)
        refer(self.discriminator, self.reference, self.reference_label)

    def _discriminate_privately(self, rows: PrivateRows, generator: Generator) -> dict[str, float]:
        """The real half of the gradient noised, the generated half as it is: that one tells
        nothing that the generator did not know.
        """
        x, label = self.data.batch(rows.draw(), self.device)
        code, wanted = self._codes(generator)
        self.generator.requires_grad_(False)
        self.discriminator.train().requires_grad_(True)
        x = diff_augment(x, self.spec.augment, generator)
        made = diff_augment(self.generator(code, wanted), self.spec.augment, generator)
        private = rows.gradients(self.loss, x, label)
        generated = self.discriminator(made, wanted)
        # A constant in the place of real rows: it has no slope.
        loss = self.loss.discriminator(generated.new_zeros(1), generated)
        size = self.players["discriminator"].update(loss, private)
        return {
            # Nothing of the real rows: the noise would not cover it.
            "generated": float(torch.sigmoid(generated.detach()).mean()),
            "gradient_discriminator": size,
        }

    def _discriminate(self, generator: Generator, number: int) -> dict[str, float]:
        spec = self.spec
        if self.private is not None:
            return self._discriminate_privately(self.private, generator)
        found, (code, wanted) = self._pairs(generator, reals=True)
        assert found is not None
        x, label = found
        self.generator.requires_grad_(False)
        self.discriminator.train().requires_grad_(True)
        self._refer()
        made = self.generator(code, wanted)
        penalised = (spec.r1 or spec.r2) and number % spec.lazy == 0
        x = diff_augment(x, spec.augment, generator).requires_grad_(bool(penalised and spec.r1))
        made = diff_augment(made, spec.augment, generator).requires_grad_(
            bool(penalised and spec.r2)
        )
        real, kind = self.discriminator.judge(x, label)
        generated = self.discriminator(made, wanted)
        loss = self.loss.discriminator(real, generated)
        total = loss
        if spec.auxiliary:
            # Of real images alone: what is generated is to learn classes, not to teach them.
            total = total + spec.auxiliary * F.cross_entropy(kind, label)
        if penalised and spec.r1:
            total = total + 0.5 * spec.lazy * spec.r1 * gradient_penalty(real, x)
        if penalised and spec.r2:
            total = total + 0.5 * spec.lazy * spec.r2 * gradient_penalty(generated, made)
        size = self.players["discriminator"].update(total)
        forget(self.discriminator)
        return {
            "loss_discriminator": float(loss.detach()),
            "real": float(torch.sigmoid(real.detach()).mean()),
            "generated": float(torch.sigmoid(generated.detach()).mean()),
            "gradient_discriminator": size,
        }

    def _generate(self, generator: Generator) -> dict[str, float]:
        found, (code, wanted) = self._pairs(generator, reals=False)
        self.generator.train().requires_grad_(True)
        self.discriminator.requires_grad_(False)
        self._refer()
        made = diff_augment(self.generator(code, wanted), self.spec.augment, generator)
        generated, kind = self.discriminator.judge(made, wanted)
        real = generated.new_zeros(len(generated))
        if found is not None:
            x, label = found
            with torch.no_grad():
                real = self.discriminator(diff_augment(x, self.spec.augment, generator), label)
        loss = self.loss.generator(real, generated)
        if self.spec.auxiliary:
            loss = loss + self.spec.auxiliary * F.cross_entropy(kind, wanted)
        size = self.players["generator"].update(loss)
        forget(self.generator)
        forget(self.discriminator)
        return {"loss_generator": float(loss.detach()), "gradient_generator": size}

    def _average(self) -> None:
        """Towards the weights of now; quickly at first, when it knows nothing."""
        seen = self.step * self.spec.batch
        life = min(self.spec.average, 0.1 * seen)
        keep = 0.5 ** (self.spec.batch / max(life, 1e-9))
        with torch.no_grad():
            for mean, now in zip(
                self.averaged.state_dict().values(), self.generator.state_dict().values(),
                strict=True,
            ):  # fmt: skip
                if mean.is_floating_point():
                    mean.mul_(keep).add_(now.cpu(), alpha=1 - keep)
                else:
                    mean.copy_(now)

    def shown(self, each: int) -> Tensor:
        """[classes * each, C, H, W]: the same codes at every step, class by class."""
        same = torch.Generator().manual_seed(self.seed + 1)
        code = torch.randn(self.classes * each, self.spec.latent, generator=same)
        label = torch.arange(self.classes).repeat_interleave(each)
        with torch.no_grad():
            made: Tensor = self.averaged(code, label)
        return made

    def spread(self, each: int = 16) -> float:
        """How far samples of a class lie apart, beside its real images; the least over classes."""
        made = self.shown(each).flatten(1)
        least = math.inf
        for label in range(self.classes):
            real = self.data.x[self.data.y == label][:each].float().flatten(1) / 255
            if len(real) < 2:
                continue
            apart = torch.pdist(made[label * each : (label + 1) * each]).mean()
            least = min(least, float(apart / torch.pdist(real).mean().clamp_min(1e-6)))
        return 1.0 if math.isinf(least) else least

    def state(self) -> dict[str, Any]:
        """Both players and the averaged generator."""
        return {name: one.state() for name, one in self.players.items()} | {
            "averaged": self.averaged.state_dict()
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take it back."""
        for name, one in self.players.items():
            one.load(state[name])
        self.averaged.load_state_dict(state["averaged"])

    def look(self, path: Path) -> dict[str, Any]:
        """Samples, class by class; how far they lie apart."""
        write_grid(self.shown(_GRID_ROWS), path, _GRID_ROWS)
        if self.private is not None:
            # How far real images lie apart is theirs.
            return {}
        spread = self.spread()
        alarm = collapsed(spread)
        return {"spread": spread} | ({"alarm": alarm} if alarm else {})

    def alarm(self, log: list[dict[str, Any]]) -> str:
        """A discriminator that is sure of everything; of the losses whose logits are log-odds."""
        if self.private is not None or self.spec.loss not in ("minimax", "non-saturating"):
            return ""
        return saturated(log)
