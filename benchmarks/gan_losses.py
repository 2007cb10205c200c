"""The generator's gradient early in training: minimax beside the non-saturating loss.

    python -m benchmarks.gan_losses [--data FOLDER] [--steps 400]

Two games on Fashion-MNIST from the same weights and the same draws, which differ by the generator's
loss alone. The discriminator has five steps for each of the generator's, as the analysis of the
game wants it near its optimum, and no gradient penalty. Once is enough: the point is a matter of
orders of magnitude.
Writes `benchmarks/results/gan-losses/`: result.json, gradients.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.environment import environment
from firewall.generate.fit_gan import GanGame, make_players
from firewall.generate.losses import LossName
from firewall.generate.spec import GanSpec
from firewall.train.data import load_idx
from firewall.train.fit_network import Images
from firewall.train.steps import write_json

OUT = Path(__file__).parent / "results" / "gan-losses"
LOSSES: tuple[LossName, ...] = ("minimax", "non-saturating")
SHAPE, CLASSES = (1, 28, 28), 10
#: Steps over which a figure of the table is a median.
_WINDOW = 50


def game(loss: LossName, data: Images, steps: int) -> list[dict[str, float]]:
    """Figures of each step."""
    spec = GanSpec(loss=loss, r1=0.0, ratio=5, width=16, width_discriminator=16)
    played = GanGame(*make_players(spec, SHAPE, CLASSES, 0), data, CLASSES, spec, 0, "cpu")
    found: list[dict[str, float]] = []
    for number in range(steps):
        found.append(played.play())
        if (number + 1) % 100 == 0:
            print(f"{loss}: step {number + 1} of {steps}", file=sys.stderr, flush=True)
    return found


def draw(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2))
    for name, curve in curves.items():
        left.semilogy([one["gradient_generator"] for one in curve], label=name, linewidth=0.8)
        right.plot([one["generated"] for one in curve], label=name, linewidth=0.8)
    left.set_title("length of G's gradient")
    right.set_title("D(G(z))")
    for axis in (left, right):
        axis.set_xlabel("step of G")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measured_in = environment(("torch", "numpy"))
    folder = arguments.data
    x, y = load_idx(folder / "train-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte.gz")
    data = Images(torch.from_numpy((x * 255).round().astype(np.uint8)), torch.from_numpy(y))
    curves = {loss: game(loss, data, arguments.steps) for loss in LOSSES}
    windows = range(0, arguments.steps, _WINDOW)
    result: dict[str, Any] = {
        "environment": measured_in,
        "steps": arguments.steps,
        "window": _WINDOW,
        "losses": {
            name: {
                key: [
                    float(np.median([one[key] for one in curve[start : start + _WINDOW]]))
                    for start in windows
                ]
                for key in ("gradient_generator", "generated", "real")
            }
            for name, curve in curves.items()
        },
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "result.json", result)
    draw({str(name): curve for name, curve in curves.items()}, arguments.out / "gradients.png")


if __name__ == "__main__":
    main()
