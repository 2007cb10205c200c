"""Why PGD alone is not believed: a network that it calls robust, and that is not.

    python -m benchmarks.gradient_masking [--data FOLDER]

Trains a small convolutional network on Fashion-MNIST (IDX files, as the Debian package
dataset-fashion-mnist has them) with single-step adversarial training from a random start (Wong et
al. 2020, arXiv:2001.03994), then attacks its first test images with the whole suite. Writes
`benchmarks/results/gradient-masking/`; interrupted, it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.environment import environment
from benchmarks.imagenet_default import publish
from firewall.attack.apgd import TargetedAutoPGD
from firewall.attack.gradient import pgd
from firewall.evaluation.onnx_target import OnnxTarget
from firewall.evaluation.report import write_report
from firewall.evaluation.request import Request
from firewall.evaluation.run import evaluate
from firewall.evaluation.surrogates import trained_surrogates
from firewall.guard.compile import export
from firewall.train.data import load_idx

OUT = Path(__file__).parent / "results" / "gradient-masking"
RADIUS = 0.1
#: Images of the training set that its attacker has, and that the network was not trained on.
ATTACKERS = 5000


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def network() -> nn.Module:
    """0.17 M parameters, 28 x 28."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 49, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def gap(net: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Accuracy under PGD-20, and under APGD-T."""
    net.eval()

    def stands(found: Tensor) -> float:
        with torch.no_grad():
            return float((net(found).argmax(dim=1) == y).float().mean())

    weak, strong = pgd(RADIUS, 20)(net, x, y), TargetedAutoPGD(RADIUS, 20)(net, x, y)
    net.train()
    return stands(weak), stands(strong)


def train(
    x: Tensor,
    y: Tensor,
    watched: tuple[Tensor, Tensor],
    epochs: int,
    seed: int,
    step: float,
    rate: float,
) -> nn.Module:
    """FGSM with a random start, on [N, 1, 28, 28] in [0, 1].

    Keeps the epoch at which PGD-20 misleads most about `watched`: with a large step and rate the
    network falls into masking its gradient and out of it again.
    """
    widest, kept = -1.0, None
    torch.manual_seed(seed)
    net = network()
    generator = torch.Generator().manual_seed(seed)
    batch, per_epoch = 128, len(x) // 128
    optimiser = torch.optim.Adam(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * per_epoch)
    begun = time.monotonic()
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator)[: per_epoch * batch]
        for rows in torch.split(order, batch):
            clean, label = x[rows], y[rows]
            start = (torch.rand(clean.shape, generator=generator) * 2 - 1) * RADIUS
            delta = ((clean + start).clamp(0, 1) - clean).requires_grad_(True)
            (gradient,) = torch.autograd.grad(F.cross_entropy(net(clean + delta), label), delta)
            moved = (delta.detach() + step * RADIUS * gradient.sign()).clamp(-RADIUS, RADIUS)
            optimiser.zero_grad()
            F.cross_entropy(net((clean + moved).clamp(0, 1)), label).backward()
            optimiser.step()
            schedule.step()
        weak, strong = gap(net, *watched)
        say(
            f"epoch {epoch + 1} of {epochs}, {time.monotonic() - begun:.0f} s: PGD-20 {weak:.1%}, "
            f"APGD-T {strong:.1%}"
        )
        if weak - strong > widest:
            widest = weak - strong
            kept = {key: value.clone() for key, value in net.state_dict().items()}
    assert kept is not None
    net.load_state_dict(kept)
    return net.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--step", type=float, default=2.0, help="of FGSM, in radii")
    parser.add_argument("--rate", type=float, default=2e-2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder for what is done so far")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measured_in = environment(("torch", "onnx", "numpy", "foolbox"))
    work = arguments.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    folder = arguments.data
    x, y = load_idx(folder / "train-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte.gz")
    test = load_idx(folder / "t10k-images-idx3-ubyte.gz", folder / "t10k-labels-idx1-ubyte.gz")
    path = work / "net.onnx"
    if not path.exists():
        net = train(
            torch.from_numpy(x[ATTACKERS:]),
            torch.from_numpy(y[ATTACKERS:]),
            (torch.from_numpy(x[:200]), torch.from_numpy(y[:200])),
            arguments.epochs,
            arguments.seed,
            arguments.step,
            arguments.rate,
        )
        path.write_bytes(export(net, {"x": torch.rand(2, 1, 28, 28)}, ["logits"]))
    target = OnnxTarget.read(path, (1, 28, 28))
    request = Request("full", "linf", RADIUS, steps=20, queries=1000)
    surrogates = trained_surrogates(target, request, x[:ATTACKERS], y[:ATTACKERS])
    done = evaluate(
        target,
        test[0][: arguments.n],
        test[1][: arguments.n],
        request,
        work / "evaluation",
        surrogates=tuple(surrogates),
        provenance=measured_in,
        jobs=arguments.jobs,
        progress=say,
    )
    done.result["training"] = {
        "method": "FGSM from a random start",
        "epochs": arguments.epochs,
        "step_in_radii": arguments.step,
        "rate": arguments.rate,
        "seed": arguments.seed,
        "rows": len(x) - ATTACKERS,
        "chosen": "the epoch with the widest gap between PGD-20 and APGD-T on 200 other images",
    }
    write_report(done, work / "evaluation" / "report.html")
    publish(done.result, work / "evaluation" / "report.html", arguments.out)


if __name__ == "__main__":
    main()
