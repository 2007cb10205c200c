"""Everything that can be said of a set of generated images before others rely on it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from firewall.errors import ConfigError
from firewall.generate.coverage import distances
from firewall.generate.extractor import Extractor, fit_extractor
from firewall.generate.grid import write_grid
from firewall.generate.judge import judge
from firewall.generate.usefulness import usefulness
from firewall.train.fit_network import Images
from firewall.train.steps import claim, write_json

#: Generated images that are drawn with their nearest neighbours, and neighbours of each.
_DRAWN, _NEIGHBOURS = 10, 4


def audit(
    made: Images,
    train: Images,
    selection: Images,
    test: Images,
    classes: int,
    folder: Path,
    *,
    graph: bytes | None = None,
    steps: int = 2000,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Judge images, attack their privacy, and train on them.

    Leaves `judge.json`, `extractor.onnx`, `samples.png` and `neighbours.png` (which shows training
    images).

    Args:
        made: generated, with the classes that were asked for.
        train: what the generator has seen.
        selection: real, by which trainings choose their epoch.
        test: real, that neither the generator nor a training has seen.
        classes: how many.
        folder: for the outcome; goes on where an earlier try stopped.
        graph: ONNX, of an extractor; trained here when None.
        steps: of each training by which generated images are compared with real ones; 0 is without.
        seed: of every draw.
        progress: told what begins.

    Raises:
        ConfigError: images differ in size, the extractor is none, or the folder holds an audit of
            something else.

    """
    if made.x.shape[1:] != train.x.shape[1:]:
        raise ConfigError(
            f"generator: images of {list(made.x.shape[1:])}; the recipe's are "
            f"{list(train.x.shape[1:])}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _claim((made, train, selection, test), graph, (steps, seed), folder)
    if graph is None:
        progress("training the extractor by which generated images are judged")
        graph = fit_extractor(
            train, selection, classes, folder / "state" / "extractor", seed=seed, progress=progress
        )
    (folder / "extractor.onnx").write_bytes(graph)
    extractor = Extractor(graph)
    progress("judging")
    found = judge(extractor, train, test, made, seed=seed)
    write_neighbours(extractor, made, train, folder / "neighbours.png", seed=seed)
    each = [torch.nonzero(made.y == label)[:_DRAWN, 0] for label in range(classes)]
    write_grid(made.x[torch.cat(each)].float() / 255, folder / "samples.png", _DRAWN)
    if steps:
        progress("training on generated images and on real ones")
        found["trained_on"] = usefulness(
            train, made, selection, test, classes, folder / "state" / "trained", steps=steps,
            seed=seed, progress=progress,
        )  # fmt: skip
    write_json(folder / "judge.json", found)
    return found


def _claim(
    images: tuple[Images, ...], graph: bytes | None, settings: tuple[int, ...], folder: Path
) -> None:
    """Refuse a folder in which something else was begun: its checkpoints are of other trainings."""
    total = hashlib.sha256(repr(settings).encode() + (graph or b""))
    for one in images:
        total.update(one.x.numpy().tobytes() + one.y.numpy().tobytes())
    claim(
        folder / "state",
        total.hexdigest(),
        f"--out: {folder} holds an audit of other images or with other settings; choose another "
        "folder",
    )


def write_neighbours(
    extractor: Extractor, made: Images, train: Images, path: Path, *, seed: int = 0
) -> None:
    """Draw a row for each of some generated images: itself, and the training images nearest to it.

    Args:
        extractor: by whose features they are near.
        made: generated; drawn from at random.
        train: what the generator has seen.
        path: of the PNG.
        seed: of the draw.

    """
    some = _some(made, _DRAWN, seed)
    features, _ = extractor(some.x.numpy())
    seen, _ = extractor(train.x.numpy())
    order = distances(features, seen).argsort(axis=1)[:, :_NEIGHBOURS]
    rows: list[torch.Tensor] = []
    for image, near in zip(some.x, order, strict=True):
        rows += [image, *train.x[torch.from_numpy(near)]]
    columns = 1 + order.shape[1]
    write_grid(torch.stack(rows).float() / 255, path, columns)


def _some(one: Images, rows: int, seed: int) -> Images:
    order = torch.randperm(len(one), generator=torch.Generator().manual_seed(seed))[:rows]
    return Images(one.x[order], one.y[order])
