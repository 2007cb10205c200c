"""What is to be evaluated, checked before anything is computed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.attack.norms import check_radius, norm_named
from firewall.attack.suite import SUITES
from firewall.errors import ConfigError

#: Values that a shard's images hold at most; so memory is bounded, whatever the image size.
_SHARD_VALUES = 1 << 21
#: Rows of a shard at most.
_SHARD_ROWS = 125


@dataclass(frozen=True)
class Request:
    """Settings of an evaluation.

    Attributes:
        suite: `quick`, `static`, `black-box`, `adaptive` or `full`.
        norm: `linf` or `l2`.
        radius: in units of the image batch.
        seed: of the attacks.
        rate: false-positive rate at which the guard is judged.
        steps: of iterated attacks; an adaptive one makes twice as many.
        queries: of black-box attacks, for each row.
        draws: of a random victim, for one gradient.

    """

    suite: str
    norm: str
    radius: float
    seed: int = 0
    rate: float = 0.01
    steps: int = 50
    queries: int = 500
    draws: int = 16

    def __post_init__(self) -> None:
        if self.suite not in SUITES:
            raise ConfigError(f"--suite: {self.suite!r}; expected one of {', '.join(SUITES)}")
        norm_named(self.norm)
        check_radius(self.norm, self.radius)

    @property
    def checks(self) -> bool:
        """Whether checks and curves follow, which show if the figures can be trusted."""
        return self.suite != "quick"

    def claim(self, target: str, x: npt.NDArray[Any], y: npt.NDArray[Any], more: str) -> str:
        """A text that says exactly what is evaluated: by it a folder is known again."""
        data = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
        # The number is raised when shards of earlier versions lack what is needed now.
        body = {
            "schema": 3, "target": target, "data": data, "surrogates": more,
            "request": asdict(self),
        }  # fmt: skip
        return json.dumps(body, indent=1, allow_nan=False) + "\n"


def shard_rows(x: npt.NDArray[Any]) -> int:
    """Rows of a shard, by the size of an image."""
    values = int(np.prod(x.shape[1:]))
    return max(1, min(_SHARD_ROWS, _SHARD_VALUES // max(1, values)))


def check_data(
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    shape: tuple[int, ...],
    classes: int,
    flag: str = "--data",
) -> None:
    """Whether images and labels fit what is evaluated.

    Args:
        x: images, as they came.
        y: labels, as they came.
        shape: of one image, (C, H, W).
        classes: of the classifier.
        flag: by which the data was given, for errors.

    Raises:
        ConfigError: they do not.

    """
    if x.ndim != 4 or x.shape[1:] != shape or not len(x):
        wanted = ", ".join(str(size) for size in shape)
        raise ConfigError(f"{flag}, x: shape {list(x.shape)}; expected [rows, {wanted}]")
    if not np.isfinite(x).all() or x.min() < 0 or x.max() > 1:
        raise ConfigError(f"{flag}, x: expected values in [0, 1]")
    if y.shape != (len(x),):
        raise ConfigError(f"{flag}, y: shape {list(y.shape)}; expected one label for {len(x)} rows")
    if y.min() < 0 or y.max() >= classes:
        raise ConfigError(f"{flag}, y: labels {y.min()} to {y.max()}; expected 0 to {classes - 1}")
