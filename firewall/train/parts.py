"""The parts of a recipe's data: read, split, and kept track of."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from firewall.train.inventory import Inventory, take_stock
from firewall.train.sources import (
    PARTS,
    Labelled,
    SourceSpec,
    content_hashes,
    read,
    read_reviewed,
    split,
    with_reviewed,
)
from firewall.train.steps import Steps, write_json


def read_parts(spec: SourceSpec, base: Path) -> tuple[dict[str, Labelled], Inventory]:
    """`train`, `selection`, `calibration` and `test`, with reviewed images in the first.

    Args:
        spec: `[data]` of a recipe.
        base: folder from which its relative paths count.

    Returns:
        The parts, and what they hold.

    Raises:
        ConfigError: the data is not what the recipe says.

    """
    found, sealed = read(spec, base)
    reviewed = read_reviewed(spec, base, found.labels)
    parts = with_reviewed(split(spec, found, sealed), reviewed, spec.repeat)
    return parts, take_stock(found, parts)


def data_step(spec: SourceSpec, parts: dict[str, Labelled], steps: Steps) -> Path:
    """The step from which all others follow: how many rows of each class every part has, and which
    they are.
    """
    content = {
        part: hashlib.sha256(
            one.x.tobytes() + one.y.tobytes() + "\n".join(one.labels).encode()
        ).hexdigest()
        for part, one in parts.items()
    }
    inputs = {"data": spec.model_dump(mode="json"), "content": content}
    return steps.run("data", inputs, lambda folder: _keep(parts, folder))


def _keep(parts: dict[str, Labelled], folder: Path) -> None:
    for part in PARTS:
        one = parts[part]
        body = {
            "rows": len(one),
            "classes": np.bincount(one.y, minlength=len(one.labels)).tolist(),
            "sha256": content_hashes(one.x),
        }
        write_json(folder / f"{part}.json", body)
