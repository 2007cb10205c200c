"""What a recipe's data are: images by class and part, and what looks like a mistake."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from firewall.train.sources import PARTS, Labelled

#: Most classes that are printed one a line.
_PRINTED = 30
#: The largest class may be so many times the smallest before a warning says so.
_IMBALANCE = 20


@dataclass(frozen=True)
class Inventory:
    """Numbers of images.

    Attributes:
        labels: of the classes.
        counts: of each part, by class.
        warnings: sentences.

    """

    labels: tuple[str, ...]
    counts: dict[str, list[int]]
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """A table as text, and the warnings."""
        width = max(len("class"), *(min(30, len(label)) for label in self.labels))
        lines = ["  ".join([f"{'class':{width}}", *(f"{part:>11}" for part in PARTS)])]
        for number, label in enumerate(self.labels[:_PRINTED]):
            cells = [f"{self.counts[part][number]:11}" for part in PARTS]
            lines.append("  ".join([f"{label[:30]:{width}}", *cells]))
        if len(self.labels) > _PRINTED:
            lines.append(f"and {len(self.labels) - _PRINTED} more classes")
        sums = [f"{sum(self.counts[part]):11}" for part in PARTS]
        lines.append("  ".join([f"{'all':{width}}", *sums]))
        return [*lines, *(f"WARNING: {one}" for one in self.warnings)]

    def to_json(self) -> dict[str, Any]:
        """For results and the model card."""
        return {
            "labels": list(self.labels), "counts": self.counts, "warnings": list(self.warnings),
        }  # fmt: skip


def take_stock(found: Labelled, parts: dict[str, Labelled]) -> Inventory:
    """Count, and look for mistakes.

    Args:
        found: all images, as they were read.
        parts: the same, divided.

    """
    labels = found.labels
    counts = {part: np.bincount(parts[part].y, minlength=len(labels)).tolist() for part in PARTS}
    warnings = [*found.warnings, *_two_labels(found)]
    for part in PARTS[1:]:
        missing = [labels[number] for number, count in enumerate(counts[part]) if not count]
        if missing:
            warnings.append(
                f"{len(missing)} of {len(labels)} classes have no image in {part}, such as "
                f"{missing[0]!r}: figures and promise say nothing of them"
            )
    least, most = min(counts["train"]), max(counts["train"])
    if least and most > _IMBALANCE * least:
        warnings.append(
            f"class {labels[counts['train'].index(most)]!r} has {most} training images and "
            f"{labels[counts['train'].index(least)]!r} has {least}: accuracy is mostly about the "
            "large ones"
        )
    return Inventory(labels, counts, tuple(warnings))


def _two_labels(found: Labelled) -> list[str]:
    """The same pixels under two labels: how many images, and the first pair."""
    first: dict[bytes, int] = {}
    pairs: list[tuple[int, int]] = []
    for row, image in enumerate(found.x):
        content = hashlib.sha256(image.tobytes()).digest()
        other = first.setdefault(content, row)
        if found.y[other] != found.y[row]:
            pairs.append((other, row))
    if not pairs:
        return []
    named = [f"{found.name(place)} ({found.labels[found.y[place]]})" for place in pairs[0]]
    return [
        f"{len(pairs)} images have the content of another one with another label, such as "
        f"{named[0]} and {named[1]}"
    ]
