"""How many earlier requests were nearly this one."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from firewall.monitors import API_VERSION, Floats, MonitorConfig, Seen, Store
from firewall_plugins.monitors.fingerprints import VECTORS, Pixels, Vector, Words, words

#: Values that a list keeps, and so the largest score.
_MOST = 64


class QuerySimilarity:
    """Counts earlier rows that are near a row and are not the same row.

    Whoever looks for an adversarial example by asking sends many requests that differ by little.
    Whoever sends one image again, as a retry does, sends the same bytes: those do not count. Each
    fingerprint finds its own neighbours, and the score is the largest count, at most 64.

    An attacker who knows this keeps requests apart, spreads them over clients or waits: that costs
    more requests, and does not make it impossible (Feng et al. 2023, arXiv:2303.06280).
    """

    api_version: ClassVar[int] = API_VERSION

    class Config(MonitorConfig):
        """What is compared, with whose requests, and for how long."""

        #: `pixels` is Blacklight's; `outputs` and `thumbnail` withstand noise that is added to
        #: every request.
        fingerprints: tuple[Literal["pixels", "outputs", "thumbnail"], ...] = Field(
            default=("pixels", "outputs"), min_length=1
        )
        #: Whose earlier requests count: the client's own, or everyone's.
        scope: Literal["client", "everyone"] = "client"
        #: For which requests are remembered.
        seconds: float = Field(default=3600, gt=0, le=30 * 86_400)
        #: Of a fingerprint's numbers that two near rows share.
        share: float = Field(default=0.5, gt=0, le=1)
        #: How near is near, by log-probabilities; `firewall calibrate-monitor` measures it.
        outputs_width: float = Field(default=1.0, gt=0)
        #: The same by thumbnails, where values lie in [0, 1].
        thumbnail_width: float = Field(default=0.25, gt=0)

    def __init__(self, config: Config, store: Store, secret: bytes) -> None:
        self._config, self._store, self._secret = config, store, secret
        widths = {"outputs": config.outputs_width, "thumbnail": config.thumbnail_width}
        self._fingerprints = {
            name: Pixels(secret)
            if name == "pixels"
            else Vector(secret, name, widths[name], VECTORS[name])
            for name in config.fingerprints
        }

    def observe(self, seen: Seen) -> Floats:
        """[N] counts, the largest over the fingerprints."""
        scores = np.zeros(len(seen.images))
        whose = seen.client if self._config.scope == "client" else ""
        found = {
            name: fingerprint(seen.images, seen.outputs)
            for name, fingerprint in self._fingerprints.items()
        }
        for row, image in enumerate(seen.images):
            digest = hashlib.blake2b(image.tobytes(), key=self._secret, digest_size=8).digest()
            own = int.from_bytes(digest, "big")
            for name, sets in found.items():
                scores[row] = max(scores[row], self._count(name, whose, sets[row], own))
        return scores

    def _count(self, name: str, whose: str, hashes: Words, own: int) -> int:
        """Other rows that share enough of the hashes; remembers this one."""
        [salt] = words(self._secret, f"{self._config.scope} {whose} {name}", 1)
        lists = self._store.exchange(
            (hashes ^ salt).tolist(), own, seconds=self._config.seconds, most=_MOST
        )
        shared = Counter(value for values in lists for value in values)
        least = max(1.0, self._config.share * len(hashes))
        return sum(1 for value, count in shared.items() if count >= least and value != own)
