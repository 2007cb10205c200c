"""Sets of numbers that similar rows share and nobody without the secret can foresee."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
#: Images [N, C, H, W] in [0, 1] and log-probabilities [N, K] to one set a row.
Fingerprint = Callable[[npt.NDArray[np.float32], npt.NDArray[np.float32]], list[Words]]

#: Pixels to which an image's sides are reduced at most, by means over blocks.
_SIDE = 64
#: Values in [0, 255] that one level of the quantisation covers, as Blacklight has it.
_LEVEL = 50
#: Values of a window: of small images, and of all others.
_WINDOW, _LONG_WINDOW = 20, 50
_SMALL = 4096
#: Hashes that stand for an image.
_KEPT = 50
#: Tables of a vector's hash, and projections that make one.
_TABLES, _PROJECTIONS = 24, 3
#: Side of a thumbnail.
_THUMBNAIL = 7
#: Log-probabilities below this say nothing more.
_LEAST = -12.0


def random_bytes(secret: bytes, name: str, count: int) -> bytes:
    """As if drawn, and the same in every replica that has the secret."""
    return hashlib.shake_256(secret + name.encode()).digest(count)


def words(secret: bytes, name: str, count: int) -> Words:
    """[count] as if drawn below 2**64."""
    return np.frombuffer(random_bytes(secret, name, 8 * count), np.uint64)


def mix(values: Words) -> Words:
    """The finaliser of SplitMix64 (Steele et al. 2014): spreads every bit over all of them."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def reduced(images: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """[N, C, H, W] to at most `side` pixels a side, by means over blocks of one size."""
    rows, channels, height, width = images.shape
    by_height, by_width = -(-height // side), -(-width // side)
    if by_height == by_width == 1:
        return images
    height, width = height // by_height * by_height, width // by_width * by_width
    blocks = images[:, :, :height, :width].reshape(
        rows, channels, height // by_height, by_height, width // by_width, by_width
    )
    means: npt.NDArray[np.float32] = blocks.mean(axis=(3, 5))
    return means


@dataclass(frozen=True)
class Pixels:
    """Windows of quantised pixels, as in Blacklight (Li et al. 2022, arXiv:2006.14042).

    Their SHA-256 is a keyed multilinear hash here (Lemire and Kaser 2014, arXiv:1202.4961): as hard
    to foresee without the key, and a matrix product.
    """

    secret: bytes

    def __call__(self, images: npt.NDArray[np.float32], outputs: Any) -> list[Words]:
        """One set a row: the largest of the windows' hashes, at most fifty."""
        small = reduced(images, _SIDE)
        flat = np.rint(small * np.float32(255 / _LEVEL)).astype(np.uint64)
        # Pixel by pixel with its channels beside each other.
        flat = flat.transpose(0, 2, 3, 1).reshape(len(flat), -1)
        window = min(_WINDOW if flat.shape[1] <= _SMALL else _LONG_WINDOW, flat.shape[1])
        drawn = words(self.secret, "pixels", window + 1)
        seen = np.lib.stride_tricks.sliding_window_view(flat, window, axis=1)
        hashes = mix(seen @ drawn[1:] + drawn[0])
        return [np.unique(row)[-_KEPT:] for row in hashes]


@dataclass(frozen=True)
class Vector:
    """Random projections of a vector, cut into intervals (Datar et al. 2004, p-stable hashing).

    Attributes:
        secret: of the projections.
        name: of what the vector is.
        width: of an interval, in units of the vector: the nearer two of them are to each other,
            measured by it, the more tables they share.
        vector: images and outputs to [N, D].

    """

    secret: bytes
    name: str
    width: float
    vector: Callable[[Any, Any], npt.NDArray[np.float32]]

    def __call__(self, images: npt.NDArray[np.float32], outputs: Any) -> list[Words]:
        """One set a row, of twenty-four."""
        x = self.vector(images, outputs).astype(np.float64)
        directions, shifts = _projections(self.secret, self.name, x.shape[1])
        cells = np.floor(x @ directions / self.width + shifts).astype(np.int64)
        parts = cells.astype(np.uint64).reshape(len(x), _TABLES, _PROJECTIONS)
        drawn = words(self.secret, f"{self.name} tables", _TABLES * (_PROJECTIONS + 1))
        drawn = drawn.reshape(_TABLES, _PROJECTIONS + 1)
        hashes = mix((parts * drawn[:, 1:]).sum(axis=2, dtype=np.uint64) + drawn[:, 0])
        return list(hashes)


@lru_cache(maxsize=16)
def _projections(
    secret: bytes, name: str, dimensions: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Directions [D, tables * projections] and shifts of the intervals."""
    seed = np.frombuffer(random_bytes(secret, name, 32), np.uint32)
    rng = np.random.default_rng(seed)
    count = _TABLES * _PROJECTIONS
    return rng.standard_normal((dimensions, count)), rng.random(count)


def outputs_vector(images: Any, outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What the classifier says, [N, K]: noise that changes every pixel's hash moves it little."""
    return np.maximum(outputs, np.float32(_LEAST))


def thumbnail_vector(images: npt.NDArray[np.float32], outputs: Any) -> npt.NDArray[np.float32]:
    """What is left of an image from afar, [N, C * 49]: noise averages out."""
    return reduced(images, _THUMBNAIL).reshape(len(images), -1)


VECTORS: dict[str, Callable[[Any, Any], npt.NDArray[np.float32]]] = {
    "outputs": outputs_vector,
    "thumbnail": thumbnail_vector,
}
