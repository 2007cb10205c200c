"""Generated images for a recipe: made, screened and judged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from firewall.errors import TrainingError
from firewall.generate.attributes import rare
from firewall.generate.extractor import Extractor, fit_extractor
from firewall.generate.grid import write_grid
from firewall.generate.judge import judge
from firewall.generate.networks import GenerativeNetwork
from firewall.generate.screen import screen
from firewall.generate.spec import AugmentSpec
from firewall.generate.store import fit_generator, open_generator
from firewall.generate.synthesise import gaussian, sample
from firewall.train.fit_network import Generated, Images
from firewall.train.processes import Processes
from firewall.train.sources import Labelled, images
from firewall.train.steps import Steps, digest, write_json


class NothingLeft(TrainingError):
    """Of some class, no generated image is good enough to train on."""


Progress = Callable[[str], None]
_GRID = 10


def generated_images(
    spec: AugmentSpec,
    parts: dict[str, Labelled],
    data: str,
    seed: int,
    steps: Steps,
    *,
    processes: Processes | None = None,
    device: str = "cpu",
    progress: Progress = lambda line: None,
) -> Path:
    """The steps of generated images: a generator, if it takes one, and what it makes.

    Args:
        spec: which.
        parts: `train`, `selection` and `calibration`.
        data: digest of the step that made them.
        seed: of every draw.
        steps: of the run; what is there is found again.
        processes: the first does the work, the others find it done; alone when None.
        device: `cpu` or `cuda`.
        progress: told what begins.

    Returns:
        The folder of `make_generated`.

    """
    processes = processes or Processes()
    if not processes.first:
        processes.wait()
    labels = parts["train"].labels
    found = {name: images(parts[name]) for name in ("train", "selection", "calibration")}
    settings: dict[str, Any] = {"data": data, "seed": seed}
    generator = None
    if spec.source == "gan":
        settings["gan"] = spec.gan.model_dump(mode="json")
        place = steps.run(
            "generator",
            settings,
            partial(fit_generator, spec.gan, found["train"], labels, seed, device, progress),
        )
        settings["generator"] = digest(place)
        generator = open_generator(place).network
    judge_of = steps.run(
        "extractor",
        {"data": data, "seed": seed},
        lambda folder: _fit_extractor(found, len(labels), seed, progress, folder),
    )
    settings["extractor"] = digest(judge_of)
    graph = (judge_of / "extractor.onnx").read_bytes()
    made = steps.run(
        "generated",
        settings | {
            "source": spec.source,
            "rows": spec.rows,
            "rare": [spec.rare, spec.attribute] if spec.rare else None,
            "screen": spec.screen.model_dump(mode="json") if spec.screen else None,
        },
        partial(make_generated, spec, generator, graph, found, len(labels), seed, progress),
    )  # fmt: skip
    if processes.first:
        processes.wait()
    return made


def make_generated(
    spec: AugmentSpec,
    generator: GenerativeNetwork | None,
    graph: bytes,
    parts: dict[str, Images],
    classes: int,
    seed: int,
    progress: Progress,
    folder: Path,
) -> None:
    """A step: generate, screen and judge.

    Leaves `generated.npz` (`x`, `y`, and `number`: which one of the generated rows each was),
    `extractor.onnx`, `judge.json` and `samples.png`.

    Args:
        spec: how many, and what is asked of them.
        generator: frozen; None for Gaussian samples.
        graph: ONNX, of the extractor by which they are judged.
        parts: `train`, `selection` and `calibration`; what the generator has seen is the first.
        classes: how many.
        seed: of every draw.
        progress: told what begins.
        folder: of the step.

    Raises:
        NothingLeft: the screen leaves nothing of a class.

    """
    if spec.rows < classes:
        raise TrainingError(f"augment.rows: {spec.rows}; the data has {classes} classes")
    extractor = Extractor(graph)
    (folder / "extractor.onnx").write_bytes(graph)
    progress(f"generating {spec.rows} images")
    made = (
        gaussian(parts["train"], spec.rows, seed=seed)
        if generator is None
        else _sampled(spec, generator, parts["train"], seed)
    )
    held = parts["calibration"]
    progress("judging them")
    found = judge(extractor, parts["train"], held, made, seed=seed)
    rows = np.arange(len(made))
    if spec.screen is not None:
        progress("screening them")
        seen = screen(
            extractor, made, parts["train"], held,
            confidence=spec.screen.confidence, quantile=spec.screen.copies,
        )  # fmt: skip
        rows = np.flatnonzero(seen.kept)
        found["screen"] = {
            "generated": len(made), "kept": len(rows), "unsure": seen.unsure,
            "copied": seen.copied, "repeated": seen.repeated,
        }  # fmt: skip
        lacking = sorted(set(range(classes)) - set(made.y[rows].tolist()))
        if lacking:
            raise NothingLeft(
                f"augment.screen: nothing is left of class {lacking[0]} (of {len(made)} generated "
                f"images {seen.unsure} are unsure, {seen.copied} copies); train the generator for "
                "longer, or ask for less confidence"
            )
    kept = Images(made.x[rows], made.y[rows])
    np.savez_compressed(folder / "generated.npz", x=kept.x.numpy(), y=kept.y.numpy(), number=rows)
    write_json(folder / "judge.json", found)
    write_grid(_grid(kept, classes), folder / "samples.png", _GRID)


def _sampled(spec: AugmentSpec, generator: GenerativeNetwork, train: Images, seed: int) -> Images:
    """As many of each class, and rare combinations after them."""
    scarce = round(spec.rare * spec.rows)
    made = sample(generator, spec.rows - scarce, seed=seed)
    if not scarce:
        return made
    more = rare(generator, train, spec.attribute, scarce, seed=seed)
    return Images(torch.cat([made.x, more.x]), torch.cat([made.y, more.y]))


def _fit_extractor(
    parts: dict[str, Images], classes: int, seed: int, progress: Progress, folder: Path
) -> None:
    """A step: the network by whose features generated images are judged."""
    progress("training the extractor by which generated images are judged")
    graph = fit_extractor(
        parts["train"], parts["selection"], classes, folder / "state", seed=seed,
        progress=progress,
    )  # fmt: skip
    (folder / "extractor.onnx").write_bytes(graph)


def load_generated(folder: Path, share: float, smoothing: float, classes: int) -> Generated:
    """What `make_generated` left, for a share of each batch."""
    with np.load(folder / "generated.npz", allow_pickle=False) as arrays:
        images = Images(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]))
    return Generated(images, share, smoothing, classes)


def best_ratio(values: dict[float, float], rows: int) -> float:
    """The share that wins on selection data, and 0 when none clearly does.

    Args:
        values: accuracy on selection data by share, 0 among them.
        rows: of selection data; a share must be ahead of 0 by a standard error of the difference.

    """
    base = values[0.0]
    best = max(values, key=lambda ratio: (values[ratio], -ratio))
    error = (2.0 * base * (1.0 - base) / rows) ** 0.5
    return best if values[best] > base + error else 0.0


def _grid(one: Images, classes: int) -> torch.Tensor:
    """Ten of each class."""
    rows = [torch.nonzero(one.y == label)[:_GRID, 0] for label in range(classes)]
    return one.x[torch.cat(rows)].float() / 255
