"""The training loop: epochs, averaged weights, an early choice, and a checkpoint after each epoch.

A run that is killed and started again goes on after the last whole epoch and ends with the same
bits: every random draw of an epoch comes from the seed and the epoch's number.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from firewall.attack.apgd import AutoPGD
from firewall.attack.gradient import GradientAttack
from firewall.attack.losses import dlr
from firewall.errors import TrainingError
from firewall.guard.classifier import Classifier
from firewall.guard.interval import least_lead
from firewall.train.objectives import Objective
from firewall.train.processes import Processes
from firewall.train.tensorboard import write_events
from firewall.train.trainee import TrainedNetwork
from firewall.train.weight_perturbation import perturbed

#: Share of selection rows by which single-step accuracy must leave the iterated one for an alarm.
_COLLAPSE = 0.25


@dataclass(frozen=True)
class Phase:
    """Some epochs with one objective."""

    objective: Objective
    epochs: int
    #: Share of its steps in which the radius grows from nothing to what the objective names.
    ramp: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """How a network is trained.

    Attributes:
        phases: in order; a cheap objective first, the strong one after it.
        radius: L-infinity, of the attack by which epochs are compared.
        batch: rows of a step.
        rate: largest learning rate, of one cycle over all phases.
        decay: of weights.
        average: share of the old average that a step keeps (EMA); 0 takes the weights as they are.
        gamma: of adversarial weight perturbation; 0 is without. From the second phase on, or in
            all of a single one.
        shift: pixels by which training images are moved at random, either way.
        mirror: whether half of them are mirrored.
        bfloat16: whether passes are computed in bfloat16, training's own bounds among them, on
            processors that have it.
        passes: over the data in an epoch. Where images are few, looking at selection data after
            each pass would take longer than learning.
        choose: figure of selection data by which the best epoch is kept: `attacked`, or
            `certified` for a network that can be bounded.

    """

    phases: tuple[Phase, ...]
    radius: float
    batch: int = 128
    rate: float = 2e-3
    decay: float = 5e-4
    average: float = 0.995
    gamma: float = 0.0
    shift: int = 0
    mirror: bool = False
    bfloat16: bool = False
    passes: int = 1
    choose: Literal["attacked", "certified"] = "attacked"

    @property
    def epochs(self) -> int:
        """Of all phases."""
        return sum(phase.epochs for phase in self.phases)

    def phase(self, epoch: int) -> tuple[int, Phase]:
        """Number and phase of an epoch, from 0."""
        for number, phase in enumerate(self.phases):
            if epoch < phase.epochs:
                return number, phase
            epoch -= phase.epochs
        raise IndexError(epoch)

    def share(self, epoch: int, done: float) -> float:
        """Share of the radius, with a share of an epoch done."""
        number, phase = self.phase(epoch)
        if not phase.ramp:
            return 1.0
        before = sum(one.epochs for one in self.phases[:number])
        return min(1.0, (epoch - before + done) / (phase.ramp * phase.epochs))


@dataclass(frozen=True)
class Images:
    """[N, C, H, W] uint8 images with [N] labels."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows as floats in [0, 1], and their labels."""
        return self.x[rows].to(device).float() / 255, self.y[rows].to(device)


@dataclass(frozen=True)
class Generated:
    """Images of a generator, of which each batch takes a share.

    Attributes:
        images: where they come from.
        share: of a batch, in (0, 1).
        smoothing: of their labels; real rows keep theirs.
        classes: how many.

    """

    images: Images
    share: float
    smoothing: float
    classes: int

    def join(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch with its last rows replaced: as many steps, and as many rows in each.

        Returns:
            Images, and labels [N]; with smoothing, probabilities [N, K].

        """
        count = round(self.share * len(x))
        real = len(x) - count
        rows = torch.randint(0, len(self.images), (count,), generator=generator)
        made, label = self.images.batch(rows, x.device)
        x, y = torch.cat([x[:real], made]), torch.cat([y[:real], label])
        if not self.smoothing:
            return x, y
        wanted = nn.functional.one_hot(y, self.classes).float()
        wanted[real:] = wanted[real:] * (1 - self.smoothing) + self.smoothing / self.classes
        return x, wanted


def fit_network(
    network: Classifier,
    train: Images,
    selection: Images,
    schedule: Schedule,
    folder: Path,
    *,
    seed: int,
    device: str = "cpu",
    processes: Processes | None = None,
    generated: Generated | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Train, leaving in `network` the averaged weights of the best epoch.

    Args:
        network: with fresh weights; changed in place.
        train: what it learns from.
        selection: rows that it does not learn from, by which epochs are compared.
        schedule: how.
        folder: for `checkpoint.pt` and `log.jsonl`.
        seed: of every draw.
        device: `cpu` or `cuda`.
        processes: among which batches are divided; alone when None.
        generated: images that take the place of some real ones in each batch.
        progress: told each epoch, with the time left.

    Returns:
        The log: an entry an epoch.

    Raises:
        TrainingError: the loss is no longer a number; the last good checkpoint is kept.

    """
    processes = processes or Processes()
    if schedule.batch < processes.size:
        raise TrainingError(
            f"training: [train] batch is {schedule.batch}, for {processes.size} processes; each "
            "needs a row"
        )
    folder.mkdir(parents=True, exist_ok=True)
    network.to(device)
    state = _State(network, schedule, len(train), torch.device(device))
    log = state.resume(folder / "checkpoint.pt")
    processes.wait()
    if log:
        if processes.first:
            # All of it is in the checkpoint; the file may be gone.
            _write_log(log, folder)
        progress(f"going on after epoch {len(log)} of {schedule.epochs}")
    begun, first = time.monotonic(), len(log)
    for epoch in range(first, schedule.epochs):
        loss = _epoch(network, state, train, schedule, seed, epoch, processes, generated)
        if not math.isfinite(loss):
            raise TrainingError(
                f"training: the loss is {loss} in epoch {epoch + 1}; lower [train] rate, which is "
                f"{schedule.rate:g}. What was good until then is in {folder / 'checkpoint.pt'}"
            )
        if not processes.first:
            continue
        figures = _figures(state.averaged, selection, schedule, seed, state.device) | {"loss": loss}
        entry: dict[str, Any] = {"epoch": epoch + 1, "phase": schedule.phase(epoch)[0]} | figures
        alarm = _alarm(figures)
        if alarm:
            entry["alarm"] = alarm
        log.append(entry)
        state.keep(folder / "checkpoint.pt", log, schedule.choose)
        _write_log(log, folder)
        write_events(log, folder / "tensorboard")
        left = (time.monotonic() - begun) / (epoch + 1 - first) * (schedule.epochs - epoch - 1)
        progress(
            f"epoch {epoch + 1} of {schedule.epochs}: loss {loss:.3f}, clean "
            f"{figures['clean']:.1%}, attacked {figures['attacked']:.1%}, "
            + (f"certified {figures['certified']:.1%}, " if "certified" in figures else "")
            + f"about {left:.0f} s left"
            + (f"; ALARM: {alarm}" if alarm else "")
        )
    # Nobody goes on before the last checkpoint is written.
    processes.wait()
    network.load_state_dict(state.best)
    network.cpu().eval().requires_grad_(False)
    return log


def _write_log(log: list[dict[str, Any]], folder: Path) -> None:
    with open(folder / "log.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in log)


class _State:
    """Everything that a checkpoint holds."""

    def __init__(
        self, network: Classifier, schedule: Schedule, rows: int, device: torch.device
    ) -> None:
        self.network = network
        self.device = device
        self.averaged = _copy(network)
        self.best = {key: value.clone() for key, value in network.state_dict().items()}
        self.best_value = -1.0
        self.steps = 0
        self.optimiser = torch.optim.AdamW(
            network.parameters(), schedule.rate, weight_decay=schedule.decay
        )
        of_a_pass = max(1, rows // schedule.batch)
        total = max(2, schedule.epochs * schedule.passes * of_a_pass)
        self.cycle = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, schedule.rate, total_steps=total, pct_start=0.2
        )

    def average(self, keep: float) -> None:
        """Move the average towards the weights; quickly at first, when it knows nothing."""
        self.steps += 1
        keep = min(keep, self.steps / (self.steps + 10))
        with torch.no_grad():
            for mean, now in zip(
                self.averaged.state_dict().values(),
                self.network.state_dict().values(),
                strict=True,
            ):
                mean.mul_(keep).add_(now, alpha=1 - keep)

    def keep(self, path: Path, log: list[dict[str, Any]], choose: str) -> None:
        """Note the best weights, and write everything."""
        value = float(log[-1][choose])
        if value >= self.best_value:
            self.best_value = value
            self.best = {k: v.clone() for k, v in self.averaged.state_dict().items()}
        body = {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "best": self.best,
            "best_value": self.best_value,
            "steps": self.steps,
            "optimiser": self.optimiser.state_dict(),
            "cycle": self.cycle.state_dict(),
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
        self.network.load_state_dict(body["network"])
        self.averaged.load_state_dict(body["averaged"])
        self.best, self.best_value = body["best"], body["best_value"]
        self.steps = body["steps"]
        self.optimiser.load_state_dict(body["optimiser"])
        self.cycle.load_state_dict(body["cycle"])
        log: list[dict[str, Any]] = body["log"]
        return log


def _epoch(
    network: Classifier,
    state: _State,
    train: Images,
    schedule: Schedule,
    seed: int,
    epoch: int,
    processes: Processes,
    generated: Generated | None,
) -> float:
    """The passes of an epoch; returns the mean loss."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    number, phase = schedule.phase(epoch)
    perturbs = schedule.gamma > 0 and (number > 0 or len(schedule.phases) == 1)
    network.train()
    network.requires_grad_(True)
    losses: list[float] = []
    model = TrainedNetwork(network, bfloat16=schedule.bfloat16)
    batches = [
        rows
        for _ in range(schedule.passes)
        for rows in _order(len(train), schedule.batch, generator)
    ]
    if processes.size > 1:
        # Draws of their own for rows of their own.
        generator = torch.Generator().manual_seed(
            (seed * 1_000_003 + epoch) * processes.size + processes.rank + 1
        )
    for done, whole in enumerate(batches):
        share = schedule.share(epoch, done / len(batches))
        rows = processes.mine(whole)
        x, y = train.batch(rows, state.device)
        if generated is not None:
            x, y = generated.join(x, y, generator)
        x = _augmented(x, schedule, generator)
        # The same draws for both passes of a perturbed step.
        before = generator.get_state()
        loss = phase.objective(model, x, y, generator, share)
        if perturbs:
            generator.set_state(before)
            with perturbed(network, loss, schedule.gamma):
                loss = phase.objective(model, x, y, generator, share)
                raised = torch.autograd.grad(loss, list(network.parameters()))
            for weight, gradient in zip(network.parameters(), raised, strict=True):
                weight.grad = gradient
        else:
            state.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        mean = loss.detach().clone()
        gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
        processes.combine([mean, *gradients], len(rows) / len(whole))
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        losses.append(float(mean))
        if not math.isfinite(losses[-1]):
            return losses[-1]
        state.optimiser.step()
        state.cycle.step()
        state.average(schedule.average)
    return sum(losses) / len(losses)


def _order(rows: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Whole batches in random order; the rest waits for the next pass, as long as one is full."""
    order = torch.randperm(rows, generator=generator)
    whole = rows // batch * batch
    yield from torch.split(order[:whole] if whole else order, batch)


def _augmented(x: Tensor, schedule: Schedule, generator: torch.Generator) -> Tensor:
    """Mirrored and moved at random, each row its own way."""
    if schedule.mirror:
        flip = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(flip.to(x.device).view(-1, 1, 1, 1), x.flip(3), x)
    if schedule.shift:
        reach = schedule.shift
        padded = nn.functional.pad(x, [reach] * 4, mode="replicate")
        moves = torch.randint(0, 2 * reach + 1, (len(x), 2), generator=generator)
        down = moves[:, :1] + torch.arange(x.shape[2])
        across = moves[:, 1:] + torch.arange(x.shape[3])
        rows = torch.arange(len(x)).view(-1, 1, 1)
        x = padded.permute(0, 2, 3, 1)[rows, down[:, :, None], across[:, None, :]]
        x = x.permute(0, 3, 1, 2)
    return x


def _figures(
    network: Classifier,
    selection: Images,
    schedule: Schedule,
    seed: int,
    device: torch.device,
) -> dict[str, float]:
    """Accuracy on selection data: clean, after one step, and under a short APGD with DLR."""

    def model(x: Tensor) -> Tensor:
        logits: Tensor = network(x).logits
        return logits

    network.eval().requires_grad_(False)
    one = GradientAttack(schedule.radius, 1, schedule.radius)
    ten = AutoPGD(schedule.radius, 10, loss=dlr)
    right = {"clean": 0, "one_step": 0, "attacked": 0}
    if schedule.choose == "certified":
        right["certified"] = 0
        bounded = TrainedNetwork(network)
    for rows in torch.split(torch.arange(len(selection)), 250):
        x, y = selection.batch(rows, device)
        for name, seen in (
            ("clean", x),
            ("one_step", one(model, x, y)),
            ("attacked", ten(model, x, y, seed=seed)),
        ):
            with torch.no_grad():
                right[name] += int((model(seen).argmax(dim=1) == y).sum())
        if schedule.choose == "certified":
            with torch.no_grad():
                leads = bounded.leads(x, schedule.radius, y)
            right["certified"] += int((least_lead(leads, y) > 0).sum())
    return {name: count / len(selection) for name, count in right.items()}


def _alarm(figures: dict[str, float]) -> str:
    """Catastrophic overfitting: strong against one step, weak against several."""
    apart = figures["one_step"] - figures["attacked"]
    if apart <= _COLLAPSE:
        return ""
    return (
        f"catastrophic overfitting: {figures['one_step']:.0%} stand one step, "
        f"{figures['attacked']:.0%} ten"
    )


def _copy(network: Classifier) -> Classifier:
    return copy.deepcopy(network).eval().requires_grad_(False)
