"""Images per second of PGD-50, beside foolbox and the Adversarial Robustness Toolbox, in one run.

    python -m benchmarks.attack_speed

The same small convolutional network, images, radius, steps and batch; rounds in turn, medians.
Writes `benchmarks/results/attack-speed/result.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.environment import environment
from firewall.attack.gradient import pgd
from firewall.attack.libraries import ArtAttack, FoolboxAttack

OUT = Path(__file__).parent / "results" / "attack-speed" / "result.json"
RADIUS, STEPS = 0.1, 50


def network() -> nn.Module:
    """0.85 M parameters, 28 x 28."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(64, 64, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 49, 256), nn.ReLU(),
        nn.Linear(256, 10),
    ).eval()  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measured_in = environment(("torch", "numpy", "foolbox", "adversarial-robustness-toolbox"))
    net = network()
    x = torch.rand(arguments.rows, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    y = net(x).argmax(dim=1)
    attacks: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
        "ours": pgd(RADIUS, STEPS),
        "ours, stopping at what fools": pgd(RADIUS, STEPS, stops=True),
        "foolbox": FoolboxAttack("pgd", "linf", RADIUS, STEPS),
        "adversarial-robustness-toolbox": ArtAttack("pgd", "linf", RADIUS, STEPS),
    }
    seconds: dict[str, list[float]] = {name: [] for name in attacks}
    fooled: dict[str, float] = {}
    for number in range(arguments.rounds + 1):
        for name, attack in attacks.items():
            begun = time.perf_counter()
            found = attack(net, x, y)
            spent = time.perf_counter() - begun
            if number:  # the first round warms up
                seconds[name].append(spent)
            fooled[name] = float((net(found).argmax(dim=1) != y).float().mean())
    rates = {name: arguments.rows / float(np.median(spent)) for name, spent in seconds.items()}
    result = {
        "environment": measured_in,
        "rows": arguments.rows,
        "steps": STEPS,
        "radius": RADIUS,
        "rounds": arguments.rounds,
        "images_per_second": rates,
        "ratio_of_ours": {name: rates["ours"] / rate for name, rate in rates.items()},
        "fooled": fooled,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["ratio_of_ours"]), file=sys.stderr)


if __name__ == "__main__":
    main()
