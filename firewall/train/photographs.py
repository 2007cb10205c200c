"""Photographs that come inside wheels, and crops of photographs.

They are for trying the default bundle without a data set. Nothing has learnt from them, and nothing
is calibrated on them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from firewall.errors import ConfigError

#: By package: the photographs in its wheel. Drawings, tables of text and microscope stacks are left
#: out, and so is the cat of the demo.
_WHEELS: dict[str, tuple[str, ...]] = {
    "skimage": tuple(
        f"data/{name}"
        for name in (
            "astronaut.png", "brick.png", "camera.png", "clock_motion.png", "coffee.png",
            "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png",
            "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg",
        )
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "foolbox": tuple(
        f"data/imagenet_{number:02d}_{label}.jpg"
        for number, label in enumerate(
            (243, 559, 438, 990, 949, 853, 609, 609, 915, 455,
             541, 630, 741, 471, 129, 99, 251, 22, 317, 305)
        )
    ),
}  # fmt: skip

#: Pixels a side of the smallest square that is cropped.
SMALLEST_CROP = 160


@dataclass(frozen=True)
class Photograph:
    """A file with its content's SHA-256."""

    name: str
    path: Path
    sha256: str

    @classmethod
    def at(cls, path: Path) -> Photograph:
        """Read and hash a file."""
        try:
            return cls(path.name, path, hashlib.sha256(path.read_bytes()).hexdigest())
        except OSError as error:
            raise ConfigError(f"photograph: {path} cannot be read: {error.strerror}") from error


def wheel_file(package: str, relative: str) -> Path:
    """A file inside an installed package, which is not imported.

    Raises:
        ConfigError: the package is not installed.

    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"photographs: package {package!r} is not installed; "
            "pip install 'robustness-firewall[train,demo]'"
        )
    return Path(spec.origin).parent / relative


def cat() -> Path:
    """The demo's cat: scikit-image's `chelsea`."""
    return wheel_file("skimage", "data/chelsea.png")


def wheel_photographs() -> list[Photograph]:
    """All photographs in the wheels of the `demo` extra."""
    return [
        Photograph.at(wheel_file(package, name))
        for package, names in _WHEELS.items()
        for name in names
    ]


def crops(
    photographs: Sequence[Photograph], each: int, size: int, seed: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.intp]]:
    """Random square crops, half of them mirrored, resized (bicubic).

    Args:
        photographs: sources.
        each: crops of one photograph.
        size: side of the result in pixels.
        seed: of places and sizes.

    Returns:
        [N, size, size, 3] uint8, and [N] the index of each crop's photograph.

    """
    rng = np.random.default_rng(seed)
    out: list[npt.NDArray[np.uint8]] = []
    for photograph in photographs:
        with Image.open(photograph.path) as opened:
            # Lets the JPEG decoder halve what is far larger than any crop needs.
            opened.draft("RGB", (4 * size, 4 * size))
            image = opened.convert("RGB")
        if min(image.size) > 4 * size:
            image.thumbnail((6 * size, 6 * size), Image.Resampling.LANCZOS)
        shorter = min(image.size)
        for _ in range(each):
            side = round(shorter * rng.uniform(0.4, 1.0))
            side = min(shorter, max(side, SMALLEST_CROP))
            left = int(rng.integers(0, image.size[0] - side + 1))
            top = int(rng.integers(0, image.size[1] - side + 1))
            crop = image.crop((left, top, left + side, top + side))
            crop = crop.resize((size, size), Image.Resampling.BICUBIC)
            if rng.random() < 0.5:
                crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            out.append(np.asarray(crop, np.uint8))
    return np.stack(out), np.repeat(np.arange(len(photographs)), each)
