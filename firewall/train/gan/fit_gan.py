"""The game itself: steps, the averaged generator, alarms, and a checkpoint to go on from.

A run that is killed and started again ends with the same bits: every draw of a step comes from the
seed and the step's number.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from firewall.errors import TrainingError
from firewall.train.fit_network import Images
from firewall.train.gan.augment import diff_augment
from firewall.train.gan.grid import write_grid
from firewall.train.gan.losses import gan_loss, gradient_penalty
from firewall.train.gan.networks import DiscriminativeNetwork, GenerativeNetwork
from firewall.train.gan.normalisation import forget, refer
from firewall.train.gan.spec import GanSpec

#: Steps between two lines of the log, and between two checkpoints with their sample grid.
LOGGED, KEPT = 100, 1000
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
            shape, classes, width=spec.width_discriminator, norm=spec.norm_discriminator
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
    folder.mkdir(parents=True, exist_ok=True)
    shape = (data.x.shape[1], data.x.shape[2], data.x.shape[3])
    game = _Game(*make_players(spec, shape, classes, seed), data, classes, spec, seed, device)
    checkpoint = folder / "checkpoint.pt"
    log = game.resume(checkpoint)
    if game.step:
        progress(f"generator: going on after step {game.step} of {spec.steps}")
    begun, first = time.monotonic(), game.step
    while game.step < spec.steps:
        figures = game.play()
        bad = [name for name, value in figures.items() if not math.isfinite(value)]
        if bad:
            raise TrainingError(
                f"augment: {bad[0]} is no number in step {game.step}; lower augment.rate, which is "
                f"{spec.rate:g}, or raise augment.r1. What was good until then is in {checkpoint}"
            )
        last = game.step == spec.steps
        if game.step % LOGGED == 0 or last:
            log.append({"step": game.step} | figures)
            alarm = saturated(log)
            if game.step % KEPT == 0 or last:
                log[-1]["spread"] = game.spread()
                alarm = alarm or collapsed(log[-1]["spread"])
            if alarm:
                log[-1]["alarm"] = alarm
        if game.step % KEPT == 0 or last:
            game.keep(checkpoint, log)
            _write_log(log, folder / "log.jsonl")
            write_grid(game.shown(_GRID_ROWS), folder / f"samples-{game.step:07d}.png", _GRID_ROWS)
            left = (time.monotonic() - begun) / (game.step - first) * (spec.steps - game.step)
            progress(
                f"generator: step {game.step} of {spec.steps}: D(x) {figures['real']:.2f}, "
                f"D(G(z)) {figures['generated']:.2f}, about {left:.0f} s left"
                + (f"; ALARM: {log[-1]['alarm']}" if "alarm" in log[-1] else "")
            )
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


class _Game:
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
        self.generator, self.discriminator = generator.to(device), discriminator.to(device)
        self.averaged = copy.deepcopy(generator).eval().requires_grad_(False)
        self.data, self.classes, self.spec, self.seed = data, classes, spec, seed
        self.device = torch.device(device)
        self.loss = gan_loss(spec.loss, spec.smoothing)
        self.step = 0
        self.optimisers = [
            torch.optim.Adam(network.parameters(), rate, (0.0, spec.beta))
            for network, rate in (
                (generator, spec.rate), (discriminator, spec.rate_discriminator),
            )
        ]  # fmt: skip
        #: Of virtual batch norms, the same at every step.
        draws = torch.Generator().manual_seed(seed)
        self.reference_code = torch.randn(64, spec.latent, generator=draws).to(self.device)
        rows = torch.randint(0, len(data), (64,), generator=draws)
        self.reference, self.reference_label = data.batch(rows, self.device)

    def play(self) -> dict[str, float]:
        """One step of G after `ratio` of D; figures of both."""
        draws = torch.Generator().manual_seed(self.seed * 1_000_000_007 + self.step)
        figures: dict[str, float] = {}
        for turn in range(self.spec.ratio):
            figures |= self._discriminate(draws, self.step * self.spec.ratio + turn)
        figures |= self._generate(draws)
        self.step += 1
        self._average()
        return figures

    def _codes(self, draws: Generator) -> tuple[Tensor, Tensor]:
        size = self.spec.batch
        code = torch.randn(size, self.spec.latent, generator=draws)
        label = torch.randint(0, self.classes, (size,), generator=draws)
        return code.to(self.device), label.to(self.device)

    def _real(self, draws: Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(0, len(self.data), (self.spec.batch,), generator=draws)
        return self.data.batch(rows, self.device)

    def _refer(self) -> None:
        refer(self.generator, self.reference_code, self.reference_label)
        refer(self.discriminator, self.reference, self.reference_label)

    def _discriminate(self, draws: Generator, number: int) -> dict[str, float]:
        spec = self.spec
        x, label = self._real(draws)
        code, wanted = self._codes(draws)
        self.generator.requires_grad_(False)
        self.discriminator.train().requires_grad_(True)
        self._refer()
        made = self.generator(code, wanted)
        penalised = (spec.r1 or spec.r2) and number % spec.lazy == 0
        x = diff_augment(x, spec.augment, draws).requires_grad_(bool(penalised and spec.r1))
        made = diff_augment(made, spec.augment, draws).requires_grad_(bool(penalised and spec.r2))
        real, generated = self.discriminator(x, label), self.discriminator(made, wanted)
        loss = self.loss.discriminator(real, generated)
        total = loss
        if penalised and spec.r1:
            total = total + 0.5 * spec.lazy * spec.r1 * gradient_penalty(real, x)
        if penalised and spec.r2:
            total = total + 0.5 * spec.lazy * spec.r2 * gradient_penalty(generated, made)
        size = self._update(1, total)
        forget(self.discriminator)
        return {
            "loss_discriminator": float(loss.detach()),
            "real": float(torch.sigmoid(real.detach()).mean()),
            "generated": float(torch.sigmoid(generated.detach()).mean()),
            "gradient_discriminator": size,
        }

    def _generate(self, draws: Generator) -> dict[str, float]:
        code, wanted = self._codes(draws)
        self.generator.train().requires_grad_(True)
        self.discriminator.requires_grad_(False)
        self._refer()
        made = diff_augment(self.generator(code, wanted), self.spec.augment, draws)
        generated = self.discriminator(made, wanted)
        real = generated.new_zeros(len(generated))
        if self.spec.loss == "relativistic":
            # Pairs of one class: the question is which of them is more real.
            x, label = self._real(draws)
            with torch.no_grad():
                real = self.discriminator(diff_augment(x, self.spec.augment, draws), label)
        loss = self.loss.generator(real, generated)
        size = self._update(0, loss)
        forget(self.generator)
        forget(self.discriminator)
        return {"loss_generator": float(loss.detach()), "gradient_generator": size}

    def _update(self, player: int, loss: Tensor) -> float:
        optimiser = self.optimisers[player]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        weights = [one for group in optimiser.param_groups for one in group["params"]]
        size = float(nn.utils.clip_grad_norm_(weights, math.inf))
        if math.isfinite(size):
            optimiser.step()
        return size

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
        draws = torch.Generator().manual_seed(self.seed + 1)
        code = torch.randn(self.classes * each, self.spec.latent, generator=draws)
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

    def keep(self, path: Path, log: list[dict[str, Any]]) -> None:
        """Write everything."""
        body = {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimisers": [one.state_dict() for one in self.optimisers],
            "step": self.step,
            "log": log,
        }
        draft = path.with_suffix(".part")
        torch.save(body, draft)
        os.replace(draft, path)

    def resume(self, path: Path) -> list[dict[str, Any]]:
        """Read what `keep` wrote, if there is any; returns the log so far."""
        if not path.exists():
            return []
        body = torch.load(path, map_location="cpu", weights_only=True)
        self.generator.load_state_dict(body["generator"])
        self.discriminator.load_state_dict(body["discriminator"])
        self.averaged.load_state_dict(body["averaged"])
        for one, state in zip(self.optimisers, body["optimisers"], strict=True):
            one.load_state_dict(state)
        self.step = body["step"]
        log: list[dict[str, Any]] = body["log"]
        return log


def _write_log(log: list[dict[str, Any]], path: Path) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in log))
