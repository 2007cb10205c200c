"""A monitor's settings from clean images: how near is near, and from which score on to refuse."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from firewall.errors import SampleTooSmall
from firewall.monitors.contract import MonitorConfig, Seen
from firewall.monitors.memory import MemoryStore
from firewall.monitors.registry import MonitorRegistry
from firewall.monitors.streams import Habits, Pixels, benign

#: Rows that go through the classifier together.
_BATCH = 64
#: Clean images from which a monitor learns what is far apart.
_APART = 1000

#: [N, H, W, C] pixels to images [N, C, H, W] in [0, 1] and log-probabilities [N, K], as served.
Look = Callable[[Pixels], tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]


@runtime_checkable
class Fittable(Protocol):
    """A monitor whose settings depend on the model, and can be learned."""

    @classmethod
    def fit(cls, config: Any, seen: Seen, secret: bytes) -> MonitorConfig:
        """Settings from clean images that are not nearly the same."""
        ...


@dataclass(frozen=True)
class Calibrated:
    """What the policy is to say.

    Attributes:
        config: of the plugin.
        threshold: above the scores of clean requests.
        requests: of the stream, by kind.
        alarms: requests of the stream at or over the threshold, by kind.
        largest: score of a clean request.

    """

    config: dict[str, Any]
    threshold: float
    requests: Mapping[str, int]
    alarms: Mapping[str, int]
    largest: float


def calibrate(
    registry: MonitorRegistry,
    plugin: str,
    config: Mapping[str, Any],
    images: Pixels,
    look: Look,
    *,
    rate: float = 0.001,
    count: int = 20_000,
    habits: Habits | None = None,
    seed: int = 0,
) -> Calibrated:
    """Settings under which at most `rate` of clean requests are refused.

    The threshold is the conformal quantile of the scores of a stream: of n clean requests, the
    next one is at or over it with a probability of `rate` at most, if it is like them. Scores of
    one stream depend on each other, so this holds for such streams as a whole and not request by
    request.

    Args:
        registry: of monitors.
        plugin: entry-point name.
        config: what is given of it.
        images: [N, H, W, C] clean, no two of them nearly the same.
        look: the model.
        rate: of false alarms.
        count: of requests of the stream.
        habits: of clients.
        seed: of every draw.

    Raises:
        SampleTooSmall: so few requests cannot promise the rate.
        PluginError: as `MonitorRegistry.load`.
        ConfigError: a setting is wrong.

    """
    rank = math.ceil((count + 1) * (1 - rate))
    if rank > count:
        raise SampleTooSmall(
            f"requests: {count} cannot promise {rate:g}; expected at least {math.ceil(1 / rate)}"
        )
    rng = np.random.default_rng(seed)
    secret, store = rng.bytes(32), MemoryStore(max(250_000, 160 * count))
    settings = dict(config)
    kind = registry.load(plugin)
    registry.build(plugin, settings, store, secret)  # a wrong setting is said before anything
    if isinstance(kind, Fittable):
        some = rng.permutation(len(images))[:_APART]
        seen = Seen("", *_looked(look, images[some]))
        settings = kind.fit(kind.Config.model_validate(settings), seen, secret).model_dump(
            mode="json"
        )
    monitor = registry.build(plugin, settings, store, secret)
    stream = list(benign(images, count, habits or Habits(), rng))
    scores = np.empty(count)
    for first in range(0, count, _BATCH):
        some_requests = stream[first : first + _BATCH]
        x, outputs = look(np.stack([one.pixels for one in some_requests]))
        for row, one in enumerate(some_requests):
            [scores[first + row]] = monitor.observe(
                Seen(one.client, x[row : row + 1], outputs[row : row + 1])
            )
    # The next number above: a row is refused at the threshold itself.
    threshold = float(np.nextafter(np.sort(scores)[rank - 1], np.inf))
    if np.array_equal(scores, np.rint(scores)):
        threshold = math.floor(threshold) + 1.0
    return Calibrated(
        config=settings,
        threshold=threshold,
        requests=Counter(one.kind for one in stream),
        alarms=Counter(
            one.kind for one, score in zip(stream, scores, strict=True) if score >= threshold
        ),
        largest=float(scores.max()),
    )


def _looked(look: Look, pixels: Pixels) -> tuple[Any, Any]:
    parts = [look(pixels[first : first + _BATCH]) for first in range(0, len(pixels), _BATCH)]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))  # type: ignore[return-value]
