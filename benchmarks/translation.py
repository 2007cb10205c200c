"""Translators at work: two looks of Fashion-MNIST, and denoisers of a GAN before a classifier.

    python -m benchmarks.translation [--data FOLDER] [--work FOLDER]

*Looks.* One domain is the data set as it is. The other is made to look photographed: each image
laid on a patch of a real photograph (scikit-image's wheel), turned a little, unevenly lit, out of
focus, noisy. No image is in both. A CycleGAN learns both ways without pairs; a classifier that
knows clean images alone says what is left of them.

*Denoisers.* `super-resolution`, `ape-gan` and `learned` are taught on forgeries of that classifier.
The table has PSNR beside bicubic interpolation, and accuracy under PGD by an attacker who does not
know the denoiser and by APGD through it.
Writes `benchmarks/results/translation/`: result.json, looks.png.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.environment import environment
from firewall.attack.apgd import AutoPGD
from firewall.generate.fit_cycle import CycleSpec, fit_cycle
from firewall.generate.fit_paired import shrunk
from firewall.generate.grid import write_grid
from firewall.stages import RAW, Evidence, Lesson, forger
from firewall.stages.registry import Registry
from firewall.train.data import load_idx
from firewall.train.examples import make_examples
from firewall.train.fit_network import Images, Phase, Schedule, fit_network
from firewall.train.networks import NetworkSpec, make_network
from firewall.train.objectives import Standard
from firewall.train.steps import code_digest, write_json

OUT = Path(__file__).parent / "results" / "translation"
#: Images of each look, test images, and those of a lesson.
SIDE, TESTED, TAUGHT = 8000, 1000, 4000
RADIUS = 0.1
_GRID = 8


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def photographs() -> list[npt.NDArray[np.float32]]:
    """Grey photographs [H, W] in [0, 1]."""
    import skimage.data

    data: Any = skimage.data
    found = [data.brick(), data.grass(), data.gravel(), data.camera()]
    return [np.asarray(one, np.float32) / np.float32(255) for one in found]


def photographed(x: npt.NDArray[np.uint8], seed: int) -> npt.NDArray[np.uint8]:
    """[N, 1, 28, 28] as a camera might have seen them on a table."""
    rng = np.random.default_rng(seed)
    tables = photographs()
    count, _, height, width = x.shape
    images = torch.from_numpy(x.astype(np.float32) / 255)
    angle = torch.from_numpy(rng.uniform(-0.2, 0.2, count).astype(np.float32))
    cosine, sine, none = torch.cos(angle), torch.sin(angle), torch.zeros(count)
    turned = torch.stack(
        [torch.stack([cosine, -sine, none], 1), torch.stack([sine, cosine, none], 1)], 1
    )
    grid = F.affine_grid(turned, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, align_corners=False)
    # Where there is cloth: softly, since its edge is thinner than a pixel.
    mask = (images * 6).clamp(0, 1)
    ground = np.empty_like(images.numpy())
    for row in range(count):
        table = tables[rng.integers(len(tables))]
        top = rng.integers(table.shape[0] - 2 * height)
        left = rng.integers(table.shape[1] - 2 * width)
        patch = table[top : top + 2 * height, left : left + 2 * width]
        ground[row, 0] = patch.reshape(height, 2, width, 2).mean(axis=(1, 3))
    seen = mask * (0.25 + 0.7 * images) + (1 - mask) * 0.5 * torch.from_numpy(ground)
    slope = torch.from_numpy(rng.uniform(-0.3, 0.3, (count, 2)).astype(np.float32))
    down, right = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    light = 1 + slope[:, 0, None, None] * down[:, None] + slope[:, 1, None, None] * right[None]
    line = torch.tensor([0.25, 0.5, 0.25])
    lit = F.pad(seen * light[:, None], (1,) * 4, mode="replicate")
    blurred = F.conv2d(lit, (line[:, None] * line)[None, None])
    noise = torch.from_numpy(rng.normal(0, 0.02, blurred.shape).astype(np.float32))
    pixels: npt.NDArray[np.uint8] = ((blurred + noise).clamp(0, 1) * 255).round().byte().numpy()
    return pixels


def accuracy(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(dim=1) == y).float().mean())


def psnr(made: Tensor, x: Tensor) -> float:
    return float(-10 * torch.log10(F.mse_loss(made, x)))


def looks(
    classifier: Callable[[Tensor], Tensor],
    clean: npt.NDArray[np.uint8],
    test: tuple[npt.NDArray[np.uint8], Tensor],
    steps: int,
    work: Path,
    out: Path,
) -> dict[str, Any]:
    """A CycleGAN between the two looks, judged by a classifier of one."""
    one = torch.from_numpy(clean[:SIDE])
    other = torch.from_numpy(photographed(clean[SIDE : 2 * SIDE], 1))
    spec = CycleSpec(steps=steps, batch=16, width=16, blocks=3)
    done = fit_cycle(one, other, spec, work / "cycle", seed=0, progress=say)
    x, y = torch.from_numpy(test[0]).float() / 255, test[1]
    seen = torch.from_numpy(photographed(test[0], 2)).float() / 255
    with torch.no_grad():
        there, cleaned = done.there(x), done.back(seen)
        columns = [x, there, done.back(there), seen, cleaned, done.there(cleaned)]
        rows = torch.stack([column[:_GRID] for column in columns], dim=1).flatten(0, 1)
        write_grid(rows, out / "looks.png", len(columns))
        return {
            "steps": steps,
            "images": SIDE,
            "accuracy": {
                "clean": accuracy(classifier, x, y),
                "photographed": accuracy(classifier, seen, y),
                "photographed, translated to clean": accuracy(classifier, cleaned, y),
                "clean, there and back": accuracy(classifier, done.back(there), y),
            },
            "cycle_error": {
                "clean": float(F.l1_loss(done.back(there), x)),
                "photographed": float(F.l1_loss(done.there(cleaned), seen)),
            },
        }


def denoisers(
    classifier: nn.Module, taught: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> dict[str, Any]:
    """Each before the classifier: clean, forged without it in mind, and forged through it."""
    (x, label), (held, y) = taught, test

    def look(at: Tensor) -> Evidence:
        out = classifier(at)
        return Evidence(raw=at, logits={RAW: out.logits}, features=out.features)

    registry = Registry.discover()
    lesson = Lesson(
        x=x, label=label, radius=RADIUS, look=look, forge=forger(RADIUS, 7),
        examples=lambda: make_examples(lambda at: classifier(at).logits, x, label, RADIUS, 480, 0),
    )  # fmt: skip
    stages: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda at: at}
    for name in ("super-resolution", "ape-gan", "learned"):
        stage: Any = registry.build("denoiser", name, {})
        say(f"{name}: {stage.learn(lesson, torch.Generator().manual_seed(0)).figures}")
        stages[name] = stage
    bicubic = shrunk(2)
    stages["bicubic, half the side and back"] = lambda at: bicubic(at, y, torch.Generator())

    def bare(at: Tensor) -> Tensor:
        logits: Tensor = classifier(at).logits
        return logits

    forged = AutoPGD(RADIUS, 50)(bare, held, y)
    found: dict[str, Any] = {}
    for name, before in stages.items():

        def through(at: Tensor, before: Callable[[Tensor], Tensor] = before) -> Tensor:
            return bare(before(at))

        adaptive = AutoPGD(RADIUS, 50)(through, held, y)
        with torch.no_grad():
            cleaned, restored = before(held), before(forged)
        found[name] = {
            "psnr_clean": None if name == "none" else psnr(cleaned, held),
            "psnr_forged": psnr(restored, held),
            "clean_accuracy": accuracy(through, held, y),
            "oblivious": accuracy(through, forged, y),
            "adaptive": accuracy(through, adaptive, y),
        }
        say(f"{name}: {found[name]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--work", type=Path, help="folder for what is done so far")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measured_in = environment(("torch", "numpy", "scikit-image"))
    # Of these settings and this code alone: a checkpoint of others is none of ours.
    told = json.dumps([arguments.steps, SIDE, code_digest(), Path(__file__).read_text()])
    work = arguments.work or Path(tempfile.mkdtemp())
    work = work / f"translation-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
    folder = arguments.data
    x, y = load_idx(folder / "train-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte.gz")
    a, b = load_idx(folder / "t10k-images-idx3-ubyte.gz", folder / "t10k-labels-idx1-ubyte.gz")
    pixels = (x * 255).round().astype(np.uint8)
    test, of_test = (a[:TESTED] * 255).round().astype(np.uint8), torch.from_numpy(b[:TESTED])
    network = make_network(NetworkSpec(width=16, hidden=64), (1, 28, 28), 10, 0)
    first = 2 * SIDE
    train = Images(torch.from_numpy(pixels[first:-1000]), torch.from_numpy(y[first:-1000]))
    held = Images(torch.from_numpy(pixels[-1000:]), torch.from_numpy(y[-1000:]))
    fit_network(
        network, train, held, Schedule((Phase(Standard(), 3),), 1 / 255), work / "classifier",
        seed=0, progress=say,
    )  # fmt: skip
    network.eval().requires_grad_(False)
    arguments.out.mkdir(parents=True, exist_ok=True)
    taught = (train.x[:TAUGHT].float() / 255, train.y[:TAUGHT])
    write_json(
        arguments.out / "result.json",
        {
            "environment": measured_in,
            "rows": {"tested": TESTED, "taught": TAUGHT},
            "radius": RADIUS,
            "looks": looks(
                lambda at: network(at).logits, pixels, (test, of_test), arguments.steps, work,
                arguments.out,
            ),
            "denoisers": denoisers(
                network, taught, (torch.from_numpy(test).float() / 255, of_test)
            ),
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
