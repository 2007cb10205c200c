"""Runs in folders: one at a time, gone on with after a kill, and progress by the clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from firewall.errors import ConfigError
from firewall.generate.loop import KEPT_SECONDS, LOGGED, play
from firewall.train.run_lock import locked


class Count:
    """A game whose state is the sum of its steps; a step may be the last one that is played."""

    def __init__(self, killed_at: int = 0) -> None:
        self.step, self.total, self.killed_at = 0, 0, killed_at

    def play(self) -> dict[str, float]:
        if self.killed_at and self.step == self.killed_at:
            raise KeyboardInterrupt
        self.step += 1
        self.total += self.step
        return {"total": float(self.total)}

    def state(self) -> dict[str, Any]:
        return {"total": self.total}

    def load(self, state: dict[str, Any]) -> None:
        self.total = state["total"]

    def look(self, path: Path) -> dict[str, Any]:
        return {"looked": self.step}

    def alarm(self, log: list[dict[str, Any]]) -> str:
        return ""


class SlowClock:
    """Twelve seconds pass with every look at it."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 0.4 * KEPT_SECONDS
        return self.now


def test_slow_steps_are_kept_by_the_clock_and_the_log_is_the_same(tmp_path: Path) -> None:
    steps = 2 * LOGGED + 5
    whole = play(Count(), steps, tmp_path / "whole", name="count", advice="")
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        play(Count(killed_at=LOGGED + 37), steps, tmp_path / "cut", name="count", advice="",
             progress=lines.append, clock=SlowClock())  # fmt: skip
    assert (tmp_path / "cut" / "checkpoint.pt").exists()
    assert len(lines) > 10
    again = Count()
    gone_on = play(again, steps, tmp_path / "cut", name="count", advice="", progress=lines.append)
    assert any("going on after step 13" in line for line in lines)
    assert gone_on == whole
    assert again.total == steps * (steps + 1) // 2


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with (
        locked(out),
        pytest.raises(ConfigError, match=r"another run \(process \d+\) is at work"),
        locked(out),
    ):
        pytest.fail("both hold it")
    with locked(out):
        pass
