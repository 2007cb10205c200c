"""The training log for TensorBoard, where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_events(log: list[dict[str, Any]], folder: Path) -> None:
    """Write a run's figures anew; nothing where `tensorboard` is not installed.

    Args:
        log: an entry an epoch, as `fit_network` keeps it.
        folder: for the event file; one that an earlier, interrupted try left there is replaced.

    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(folder)) as writer:
        for entry in log:
            for name, value in entry.items():
                if name not in ("epoch", "phase", "alarm"):
                    writer.add_scalar(name, value, entry["epoch"])
            if "alarm" in entry:
                writer.add_text("alarm", entry["alarm"], entry["epoch"])
