"""Clean requests as they come in life: most are new, some come again, some are nearly the same."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Habits:
    """What clients do.

    Attributes:
        again: share of requests that are a retry of the one before, bit for bit.
        resaved: share that are an earlier image of the client, saved as JPEG once more.
        videos: share of requests that begin a clip, whose frames then follow.
        frames: of a clip on average; lengths are geometric.
        noise: standard deviation of the camera's, of 255.
        clients: that share the stream.

    """

    again: float = 0.05
    resaved: float = 0.02
    videos: float = 0.02
    frames: float = 8.0
    noise: float = 2.0
    clients: int = 100


@dataclass(frozen=True)
class Request:
    """One row of the stream. `kind` is `new`, `again`, `resaved` or `frame`."""

    client: str
    kind: str
    pixels: Pixels = field(repr=False)


def benign(
    images: Pixels, count: int, habits: Habits, rng: np.random.Generator
) -> Iterator[Request]:
    """A stream of clean requests.

    Args:
        images: [N, H, W, C], no two of them nearly the same; they are taken in order, and from the
            start again by other clients when there are no more.
        count: of requests.
        habits: of clients.
        rng: of every draw.

    """
    past: dict[str, list[Pixels]] = {}
    clips: dict[str, tuple[Pixels, int]] = {}
    taken = 0
    for _ in range(count):
        lap = taken // len(images)
        client = f"{lap}-{rng.integers(habits.clients)}"
        mine = past.setdefault(client, [])
        draw = rng.random()
        if client in clips:
            scene, left = clips.pop(client)
            if left > 1:
                clips[client] = (scene, left - 1)
            kind, now = "frame", _frame(scene, habits.noise, rng)
        elif mine and draw < habits.again:
            kind, now = "again", mine[-1]
        elif mine and draw < habits.again + habits.resaved:
            kind, now = "resaved", _resaved(mine[rng.integers(len(mine))], rng)
        else:
            kind, now = "new", images[taken % len(images)]
            taken += 1
            if draw > 1 - habits.videos:
                clips[client] = (now, int(rng.geometric(1 / habits.frames)))
        mine.append(now)
        yield Request(client, kind, now)


def _frame(scene: Pixels, noise: float, rng: np.random.Generator) -> Pixels:
    """The scene a moment later: moved by a pixel at most, under other light, with new noise."""
    moved = np.roll(scene, tuple(rng.integers(-1, 2, 2)), axis=(0, 1)).astype(np.float64)
    seen = moved * rng.normal(1.0, 0.01) + rng.normal(0.0, noise, scene.shape)
    return np.rint(seen).clip(0, 255).astype(np.uint8)


def _resaved(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Through JPEG."""
    from PIL import Image

    grey = image.shape[2] == 1
    buffer = io.BytesIO()
    picture: Any = Image.fromarray(image[:, :, 0] if grey else image)
    picture.save(buffer, "JPEG", quality=int(rng.integers(60, 96)))
    read = np.asarray(Image.open(buffer))
    return read[:, :, None] if grey else read
