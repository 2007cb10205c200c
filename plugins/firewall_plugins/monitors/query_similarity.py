"""How many earlier requests were nearly this one."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from firewall.monitors import API_VERSION, Floats, MonitorConfig, Seen, Store
from firewall_plugins.monitors.fingerprints import (
    VECTORS,
    Fingerprint,
    Pixels,
    Vector,
    Words,
    words,
)

#: Values that a list keeps, and so the largest score.
_MOST = 64
#: Of pairs of different images, the share that may look near.
_APART = 1e-4


class QuerySimilarity:
    """Counts earlier rows that are near a row and are not the same row.

    Whoever looks for an adversarial example by asking sends many requests that differ by little.
    Whoever sends one image again, as a retry does, sends the same bytes: those do not count. The
    score is the count, at most 64. Several of these in one policy, by fingerprint and scope, each
    with its own threshold, see more than one.

    An attacker who knows this keeps requests apart, spreads them over clients or waits: that costs
    more requests, and does not make it impossible (Feng et al. 2023, arXiv:2303.06280).
    """

    api_version: ClassVar[int] = API_VERSION

    class Config(MonitorConfig):
        """What is compared, with whose requests, and for how long."""

        #: By what rows are near: `pixels` is Blacklight's; `thumbnail` withstands noise that is
        #: added to every request, and so does `outputs`, where the classifier is robust.
        fingerprint: Literal["pixels", "outputs", "thumbnail"] = "pixels"
        #: Whose earlier requests count: the client's own, or everyone's.
        scope: Literal["client", "everyone"] = "client"
        #: For which requests are remembered.
        seconds: float = Field(default=3600, gt=0, le=30 * 86_400)
        #: Of a fingerprint's numbers that two near rows share.
        share: float = Field(default=0.5, gt=0, le=1)
        #: How near is near, in units of the vector; not of `pixels`. `firewall calibrate-monitor`
        #: measures it.
        width: float = Field(default=0.25, gt=0)

    def __init__(self, config: Config, store: Store, secret: bytes) -> None:
        self._config, self._store, self._secret = config, store, secret
        name = config.fingerprint
        self._fingerprint: Fingerprint = (
            Pixels(secret)
            if name == "pixels"
            else Vector(secret, name, config.width, VECTORS[name])
        )

    @classmethod
    def fit(cls, config: Config, seen: Seen, secret: bytes) -> Config:
        """The width by which one in ten thousand pairs of different images are near."""
        name = config.fingerprint
        if name == "pixels":
            return config
        vector = VECTORS[name](seen.images, seen.outputs)
        return config.model_copy(update={"width": _width(vector, name, config.share, secret)})

    def observe(self, seen: Seen) -> Floats:
        """[N] counts."""
        whose = seen.client if self._config.scope == "client" else ""
        [salt] = words(self._secret, f"{self._config.scope} {whose}", 1)
        sets = self._fingerprint(seen.images, seen.outputs)
        return np.array(
            [
                self._count(hashes ^ salt, self._own(image))
                for hashes, image in zip(sets, seen.images, strict=True)
            ],
            np.float64,
        )

    def _own(self, image: npt.NDArray[np.float32]) -> int:
        digest = hashlib.blake2b(image.tobytes(), key=self._secret, digest_size=8).digest()
        return int.from_bytes(digest, "big")

    def _count(self, hashes: Words, own: int) -> int:
        """Other rows that share enough of the hashes; remembers this one."""
        lists = self._store.exchange(hashes.tolist(), own, seconds=self._config.seconds, most=_MOST)
        shared = Counter(value for values in lists for value in values)
        least = max(1.0, self._config.share * len(hashes))
        return sum(1 for value, count in shared.items() if count >= least and value != own)


def _width(x: npt.NDArray[np.float32], name: str, share: float, secret: bytes) -> float:
    """By bisection, in powers of two and then finer; of a vector that never changes, one."""
    spread = float(x.std(axis=0).mean())
    if spread == 0:
        return 1.0
    low, high = spread / 256, spread * 64
    while high / low > 1.05:
        middle = (low * high) ** 0.5
        if _near(Vector(secret, name, middle, lambda images, _: images)(x, None), share) > _APART:
            high = middle
        else:
            low = middle
    return float(f"{low:.3g}")


def _near(sets: list[Words], share: float) -> float:
    """Share of the pairs of rows that share enough hashes."""
    tables = np.stack(sets)
    near = 0
    for row in range(1, len(tables)):
        same = (tables[:row] == tables[row]).sum(axis=1)
        near += int((same >= share * tables.shape[1]).sum())
    return near / (len(tables) * (len(tables) - 1) / 2)
