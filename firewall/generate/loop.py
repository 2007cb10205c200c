"""What every game of images has in common: steps that can be killed, a log, and pictures."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from firewall.errors import TrainingError

#: Steps between two lines of the log, and between two looks with their pictures.
LOGGED, KEPT = 100, 1000
#: Seconds after which a checkpoint is written and progress is told, however slow steps are.
KEPT_SECONDS = 30.0


class Game(Protocol):
    """Something that is played step by step."""

    step: int

    def play(self) -> dict[str, float]:
        """One step, every draw of which comes from the seed and the step's number; its figures."""

    def state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, but for the step's number."""

    def load(self, state: dict[str, Any]) -> None:
        """Take it back."""

    def look(self, path: Path) -> dict[str, Any]:
        """Draw how far it is; figures that are too dear for every line, and perhaps an `alarm`."""

    def alarm(self, log: list[dict[str, Any]]) -> str:
        """What the log gives away; empty when all is well."""


def play(
    game: Game,
    steps: int,
    folder: Path,
    *,
    name: str,
    advice: str,
    progress: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.monotonic,
) -> list[dict[str, Any]]:
    """Play to the end, from where an earlier try in the folder was.

    Args:
        game: fresh.
        steps: in all.
        folder: for `checkpoint.pt`, `log.jsonl` and pictures.
        name: of what is trained, for messages.
        advice: what to change when a figure is no number.
        progress: told each checkpoint.
        clock: seconds.

    Returns:
        The log: an entry each hundred steps.

    Raises:
        TrainingError: a figure is no number; the last good checkpoint is kept.

    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    log: list[dict[str, Any]] = []
    if checkpoint.exists():
        body = torch.load(checkpoint, map_location="cpu", weights_only=True)
        game.load(body["game"])
        game.step, log = body["step"], body["log"]
        _write_log(log, folder)
        progress(f"{name}: going on after step {game.step} of {steps}")
    begun = saved = clock()
    first = game.step
    while game.step < steps:
        figures = game.play()
        bad = [one for one, value in figures.items() if not math.isfinite(value)]
        if bad:
            raise TrainingError(
                f"{name}: {bad[0]} is no number in step {game.step}; {advice}. What was good until "
                f"then is in {checkpoint}"
            )
        last = game.step == steps
        kept = last or game.step % KEPT == 0
        alarm = ""
        # What is logged and looked at depends on the step alone: a run that was killed and gone on
        # with has the same log.
        if kept or game.step % LOGGED == 0:
            log.append({"step": game.step} | figures)
            if kept:
                log[-1] |= game.look(folder / f"samples-{game.step:07d}.png")
            alarm = log[-1].get("alarm") or game.alarm(log)
            if alarm:
                log[-1]["alarm"] = alarm
        if kept or clock() - saved > KEPT_SECONDS:
            saved = clock()
            draft = checkpoint.with_suffix(".part")
            torch.save({"game": game.state(), "step": game.step, "log": log}, draft)
            os.replace(draft, checkpoint)
            _write_log(log, folder)
            left = (saved - begun) / (game.step - first) * (steps - game.step)
            said = ", ".join(
                f"{key.replace('_', ' ')} {value:.3g}" for key, value in figures.items()
            )
            progress(
                f"{name}: step {game.step} of {steps}: {said}, about {left:.0f} s left"
                + (f"; ALARM: {alarm}" if alarm else "")
            )
    return log


class Player:
    """A network with its optimiser."""

    def __init__(self, network: nn.Module, rate: float, betas: tuple[float, float]) -> None:
        self.network = network
        self.optimiser = torch.optim.Adam(network.parameters(), rate, betas)

    def update(self, loss: Tensor, others: list[Tensor] | None = None) -> float:
        """Go down a loss, unless its gradient is no number; returns the length of the gradient.

        Args:
            loss: a number with a graph.
            others: gradients from elsewhere that are added, one for each parameter.

        """
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if others is not None:
            for one, other in zip(self.network.parameters(), others, strict=True):
                one.grad = other if one.grad is None else one.grad + other
        size = float(nn.utils.clip_grad_norm_(self.network.parameters(), math.inf))
        if math.isfinite(size):
            self.optimiser.step()
        return size

    def state(self) -> dict[str, Any]:
        """Weights, and what the optimiser remembers."""
        return {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])


def draws(seed: int, step: int) -> torch.Generator:
    """Of one step."""
    return torch.Generator().manual_seed(seed * 1_000_000_007 + step)


def _write_log(log: list[dict[str, Any]], folder: Path) -> None:
    (folder / "log.jsonl").write_text(
        "".join(json.dumps(line, allow_nan=False) + "\n" for line in log), encoding="utf-8"
    )
