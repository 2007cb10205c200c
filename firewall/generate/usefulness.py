"""Whether generated images train to the same model as real ones.

A classifier is trained on generated images and tested on real ones, beside two that were trained on
as many real images and differ by their seed: two trainings never agree entirely, so that is what
agreement is measured against.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from firewall.train.fit_network import Images, Phase, Schedule, fit_network
from firewall.train.networks import NetworkSpec, make_network
from firewall.train.objectives import Standard

_SPEC = NetworkSpec(architecture="cnn", width=16, hidden=64)
#: Rows of a training step, and of a pass over the test.
_STEP, _BATCH = 128, 500
#: Looks at selection data, by which the epoch to keep is chosen.
_LOOKS = 6


def usefulness(
    train: Images,
    generated: Images,
    selection: Images,
    test: Images,
    classes: int,
    folder: Path,
    *,
    steps: int = 2000,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train on each, test on real images.

    Args:
        train: real.
        generated: with the classes that were asked for.
        selection: real, by which epochs are compared.
        test: real, that no training has seen.
        classes: how many.
        folder: for checkpoints.
        steps: of each training, about.
        seed: of every draw; the second real training has another.
        progress: told each epoch.

    Returns:
        `accuracy` on test images of `real` and `generated`, the share of test images on which the
        two `agree`, and `seed_to_seed`, the same of two real trainings.

    """
    rows = min(len(train), len(generated))
    real, made = _some(train, rows, seed), _some(generated, rows, seed)
    said = {
        name: _said(data, selection, test, classes, folder / name, steps, own, progress)
        for name, data, own in (
            ("real", real, seed), ("real-again", real, seed + 1), ("generated", made, seed),
        )
    }  # fmt: skip
    accuracy = {name: float((one == test.y).float().mean()) for name, one in said.items()}
    return {
        "rows": rows,
        "accuracy": {"real": accuracy["real"], "generated": accuracy["generated"]},
        "agree": float((said["real"] == said["generated"]).float().mean()),
        "seed_to_seed": float((said["real"] == said["real-again"]).float().mean()),
    }


def _said(
    data: Images,
    selection: Images,
    test: Images,
    classes: int,
    folder: Path,
    steps: int,
    seed: int,
    progress: Callable[[str], None],
) -> torch.Tensor:
    """[N]: the classes that a network trained on these images gives the test images."""
    shape = (data.x.shape[1], data.x.shape[2], data.x.shape[3])
    network = make_network(_SPEC, shape, classes, seed)
    every = max(1, round(steps * _STEP / len(data)))
    # A few looks at selection data: where images are few they take longer than passes do.
    passes = math.ceil(every / _LOOKS)
    phases = (Phase(Standard(0.05), math.ceil(every / passes)),)
    schedule = Schedule(phases=phases, radius=1 / 255, batch=_STEP, shift=1, passes=passes)
    fit_network(network, data, selection, schedule, folder, seed=seed, progress=progress)
    network.eval()
    with torch.no_grad():
        return torch.cat(
            [
                network(part.float() / 255).logits.argmax(dim=1)
                for part in torch.split(test.x, _BATCH)
            ]
        )


def _some(one: Images, rows: int, seed: int) -> Images:
    order = torch.randperm(len(one), generator=torch.Generator().manual_seed(seed))[:rows]
    return Images(one.x[order], one.y[order])
