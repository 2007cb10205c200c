"""Seconds until a network stands 70 % under strong attack, beside ART's trainers, in one run.

    python -m benchmarks.time_to_robustness [--data FOLDER]

The same layers, the same Fashion-MNIST images, L-infinity 0.1, two threads, one after the other.
What is each one's own: ours computes in bfloat16, averages weights and, with interval bounds,
begins from weights drawn for them; ART's trainers run as their documentation shows them. After each
epoch the network is attacked on 200 images that none was trained on, by APGD with cross-entropy,
targeted APGD and Square, and what all leave standing counts; that time is nobody's. A trainer that
does not get there within its budget is said not to.
Writes `benchmarks/results/time-to-robustness/result.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.environment import environment
from benchmarks.standing import standing
from firewall.train.data import load_idx
from firewall.train.fit_network import Images, Phase, Schedule, fit_network
from firewall.train.networks import Cnn, NetworkSpec, make_network
from firewall.train.objectives import (
    AdversarialTraining,
    Inner,
    IntervalBound,
    SingleStep,
    Standard,
)

OUT = Path(__file__).parent / "results" / "time-to-robustness" / "result.json"
RADIUS, AIM = 0.1, 0.70
NETWORK = NetworkSpec(architecture="shallow", width=32, hidden=256)
WATCHED, SELECTION = 200, 300


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Logits(nn.Module):
    """What ART trains: images to logits."""

    def __init__(self, network: Cnn) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x).logits
        return logits


class Stop(Exception):
    """The aim is reached, or the budget spent."""


class Watch:
    """A clock that stands still while the network is attacked."""

    def __init__(self, name: str, x: Tensor, y: Tensor, budget: float) -> None:
        self.name, self.x, self.y, self.budget = name, x, y, budget
        self.spent = 0.0
        self.begun = time.perf_counter()
        self.curve: list[dict[str, float]] = []

    def look(self, model: Callable[[Tensor], Tensor]) -> None:
        self.spent += time.perf_counter() - self.begun
        robust = float(standing(model, self.x, self.y, RADIUS).mean())
        self.curve.append({"seconds": self.spent, "robust_accuracy": robust})
        say(f"{self.name}: {self.spent:.0f} s, {robust:.1%}")
        if robust >= AIM or self.spent > self.budget:
            raise Stop
        self.begun = time.perf_counter()

    def result(self) -> dict[str, Any]:
        reached = bool(self.curve) and self.curve[-1]["robust_accuracy"] >= AIM
        return {"seconds": self.curve[-1]["seconds"] if reached else None, "curve": self.curve}


def ours(
    watch: Watch, phases: tuple[Phase, ...], spec: NetworkSpec, train: Images, held: Images
) -> None:
    """`fit_network`, looked at after each epoch in the weights that it would keep."""
    network = make_network(spec, (1, 28, 28), 10, 0)
    copy = make_network(spec, (1, 28, 28), 10, 0).eval().requires_grad_(False)
    schedule = Schedule(
        phases=phases, radius=RADIUS, rate=2e-3, decay=0.0, average=0.99, bfloat16=True
    )
    with tempfile.TemporaryDirectory() as folder:

        def looked(line: str) -> None:
            state = torch.load(Path(folder) / "checkpoint.pt", weights_only=True)
            copy.load_state_dict(state["averaged"])
            watch.look(lambda x: copy(x).logits)

        fit_network(network, train, held, schedule, Path(folder), seed=0, progress=looked)


def art(watch: Watch, kind: str, x: Tensor, y: Tensor, epochs: int) -> None:
    """ART's Madry trainer with PGD-7, looked at after each epoch, or its fast one."""
    from art.defences.trainer import AdversarialTrainerFBFPyTorch, AdversarialTrainerMadryPGD
    from art.estimators.classification import PyTorchClassifier

    # Importing is nobody's training.
    watch.begun = time.perf_counter()
    model = Logits(make_network(NETWORK, (1, 28, 28), 10, 0)).train().requires_grad_(True)
    classifier = PyTorchClassifier(
        model=model,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        input_shape=(1, 28, 28),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    images, labels = x.numpy(), np.eye(10, dtype=np.float32)[y.numpy()]

    def look() -> None:
        model.eval()
        watch.look(model)
        model.train()

    if kind == "madry":
        trainer = AdversarialTrainerMadryPGD(
            classifier, nb_epochs=1, batch_size=128, eps=RADIUS, eps_step=0.3 * RADIUS, max_iter=7
        )
        for _ in range(epochs):
            trainer.fit(images, labels, nb_epochs=1)
            look()
    else:
        # Its learning rate has one cycle over all epochs: only the end can be looked at.
        AdversarialTrainerFBFPyTorch(classifier, eps=RADIUS).fit(
            images, labels, batch_size=128, nb_epochs=epochs
        )
        look()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--budget", type=float, default=1200.0, help="seconds of training each")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measured_in = environment(("torch", "numpy", "adversarial-robustness-toolbox"))
    folder = arguments.data
    x, y = load_idx(folder / "train-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte.gz")
    images, labels = torch.from_numpy(x[: arguments.rows]), torch.from_numpy(y[: arguments.rows])
    watched = (images[:WATCHED], labels[:WATCHED])
    pixels = (images * 255).round().to(torch.uint8)
    first = WATCHED + SELECTION
    held = Images(pixels[WATCHED:first], labels[WATCHED:first])
    train = Images(pixels[first:], labels[first:])
    bounded = NETWORK.model_copy(update={"initialisation": "interval"})
    interval = IntervalBound(RADIUS, 0.1, Inner(RADIUS, 2, 0.7))
    runs: dict[str, Callable[[Watch], None]] = {
        "ours, interval and PGD-2": lambda watch: ours(
            watch, (Phase(Standard(), 1), Phase(interval, 9, 0.4)), bounded, train, held
        ),
        "ours, N-FGSM then PGD-5": lambda watch: ours(
            watch,
            (Phase(SingleStep(RADIUS), 3), Phase(AdversarialTraining(Inner(RADIUS, 5, 0.4)), 12)),
            NETWORK, train, held,
        ),
        "ART, Madry with PGD-7": lambda watch: art(
            watch, "madry", images[first:], labels[first:], 100
        ),
        "ART, fast (FBF), 10 epochs": lambda watch: art(
            watch, "fbf", images[first:], labels[first:], 10
        ),
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, run in runs.items():
        watch = Watch(name, *watched, arguments.budget)
        with contextlib.suppress(Stop):
            run(watch)
        found[name] = watch.result()
    result = {
        "environment": measured_in,
        "radius": RADIUS,
        "aim": AIM,
        "rows": len(train),
        "budget_seconds": arguments.budget,
        "threads": torch.get_num_threads(),
        "trainers": found,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
