"""What each choice of `fashion-quick`'s training gives: one changed at a time, two seeds each.

    python -m benchmarks.choices [--work FOLDER] [--jobs 2]

Data, network and schedule are the recipe's, on half of its training images and with six epochs, so
that many runs fit into an hour: what is ahead here is so in short training. The first 1,000 sealed
test images are attacked by APGD with cross-entropy, targeted APGD and Square. Goes on where it was
when started again with the same folder.
Writes `benchmarks/results/choices/result.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment
from benchmarks.standing import standing
from firewall.guard.interval import least_lead
from firewall.stages.registry import Registry
from firewall.train.fit_network import Images, fit_network
from firewall.train.networks import NetworkSpec, make_network
from firewall.train.parts import data_step, read_parts
from firewall.train.recipe import Recipe, TrainSpec, load
from firewall.train.sources import images
from firewall.train.steps import Steps, digest, write_json
from firewall.train.trainee import TrainedNetwork

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "fashion-quick.toml"
SEEDS, ROWS, EPOCHS, TESTED = 2, 27_000, 6, 1000
STEPS, TARGETED, QUERIES = 50, 30, 1000
_PGD = {"steps": 5, "step": 0.4}
_WARM = {"objective": "n-fgsm", "epochs": 2}
_BOUNDS: dict[str, Any] = {
    "objective": "interval", "weight": 0.1, "steps": 2, "step": 0.7, "epochs": EPOCHS - 1,
    "ramp": 0.3,
}  # fmt: skip
_FIRST = {"objective": "standard", "epochs": 1}

#: What differs from `interval, as the recipe`: of the network, and of its training.
CHOICES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "N-FGSM": (
        {"initialisation": "torch"},
        {"phases": [{"objective": "n-fgsm", "epochs": EPOCHS}]},
    ),
    "N-FGSM, then PGD-5": (
        {"initialisation": "torch"},
        {"phases": [_WARM, {"objective": "pgd", "epochs": EPOCHS - 2} | _PGD]},
    ),
    "N-FGSM, then TRADES": (
        {"initialisation": "torch"},
        {"phases": [_WARM, {"objective": "trades", "epochs": EPOCHS - 2} | _PGD]},
    ),
    "interval, as the recipe": ({}, {}),
    "torch's first weights": ({"initialisation": "torch"}, {}),
    "bounds with weight 0.5": ({}, {"phases": [_FIRST, _BOUNDS | {"weight": 0.5}]}),
    "weights not averaged": ({}, {"average": 0.0}),
    "AWP, gamma 0.005": ({}, {"gamma": 0.005}),
    "16 levels of input": ({"levels": 16}, {}),
    "48 channels": ({"width": 48}, {}),
}


def own_code() -> str:
    """Of what decides the figures beside the package: another version of it starts anew."""
    here = Path(__file__).parent
    return hashlib.sha256(
        b"".join((here / name).read_bytes() for name in ("choices.py", "standing.py"))
    ).hexdigest()


def specs(recipe: Recipe, name: str) -> tuple[NetworkSpec, TrainSpec]:
    """Network and training of a choice."""
    network, train = CHOICES[name]
    base = recipe.train.model_dump() | {"phases": [_FIRST, _BOUNDS]}
    return (
        NetworkSpec.model_validate(recipe.network.model_dump() | network),
        TrainSpec.model_validate(base | train),
    )


def measure(name: str, seed: int, work: Path) -> dict[str, float]:
    """A run's figures, on the sealed test images."""
    torch.set_num_threads(1)
    recipe = load(RECIPE, Registry.discover())
    parts, _ = read_parts(recipe.data, RECIPE.parent)
    steps = Steps(work / "steps", lambda line: None)
    network, train = specs(recipe, name)
    inputs = {
        "data": digest(data_step(recipe.data, parts, steps)),
        "network": network.model_dump(mode="json"),
        "train": train.model_dump(mode="json"),
        "seed": seed,
        "benchmark": own_code(),
    }
    place = steps.run("run", inputs, partial(_measure, name, network, train, parts, seed))
    found: dict[str, float] = json.loads((place / "figures.json").read_text())
    return found


def _measure(
    name: str, spec: NetworkSpec, train: TrainSpec, parts: dict[str, Any], seed: int, folder: Path
) -> None:
    every = images(parts["train"])
    channels, height, width = every.x.shape[1:]
    shape = (channels, height, width)
    network = make_network(spec, shape, len(parts["train"].labels), seed)
    begun = time.perf_counter()
    fit_network(
        network, Images(every.x[:ROWS], every.y[:ROWS]), images(parts["selection"]),
        train.schedule(), folder / "state", seed=seed,
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    network.eval().requires_grad_(False)
    test = images(parts["test"])
    x, y = test.x[:TESTED].float() / 255, test.y[:TESTED]
    with torch.no_grad():
        clean = float((network(x).logits.argmax(dim=1) == y).float().mean())
        leads = TrainedNetwork(network).leads(x, train.radius, y)
    figures = {
        "clean_accuracy": clean,
        "robust_accuracy": float(
            standing(
                lambda rows: network(rows).logits, x, y, train.radius,
                steps=STEPS, targeted=TARGETED, queries=QUERIES,
            ).mean()
        ),
        # Of each row against its own class: a bound that holds is right as well.
        "certified_accuracy": float((least_lead(leads, y) > 0).float().mean()),
        "seconds": seconds,
    }  # fmt: skip
    write_json(folder / "figures.json", figures)
    print(f"{name}, seed {seed}: {figures}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="folder for what is done so far")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "choices")
    arguments = parser.parse_args()
    measured_in = environment(("torch", "numpy"))
    work = arguments.work or Path(tempfile.mkdtemp())
    every = [(name, seed) for name in CHOICES for seed in range(SEEDS)]
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        found = dict(
            zip(every, pool.map(measure, *zip(*every, strict=True), [work] * len(every)),
                strict=True)
        )  # fmt: skip
    result = {
        "environment": measured_in,
        "rows": {"train": ROWS, "attacked": TESTED},
        "epochs": EPOCHS,
        "effort": {"apgd": STEPS, "apgd_targeted": TARGETED, "square": QUERIES},
        "choices": {
            name: [found[name, seed] for seed in range(SEEDS)] for name in CHOICES
        },
    }  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "result.json", result)


if __name__ == "__main__":
    main()
