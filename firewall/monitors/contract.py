"""The contract of a monitor.

A detector is a pure function of one row; a monitor sees the sequence. It scores rows and decides
nothing: the policy has the score from which a row is refused. What it remembers is in a `Store`, so
that replicas share it and its memory is bounded, and nowhere else: a monitor is made anew whenever
the policy changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from firewall.monitors.store import Store

#: The version of this contract. A plugin states the one it was written for.
API_VERSION = 1

Floats = npt.NDArray[np.floating[Any]]


class MonitorConfig(BaseModel):
    """Base of every monitor's configuration: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Seen:
    """A request as a monitor sees it.

    Attributes:
        client: who asks; a pseudonym, the same for the same client.
        images: [N, C, H, W] float32 in [0, 1], before any normalisation.
        outputs: [N, K] log-probabilities of the classifier.

    """

    client: str
    images: npt.NDArray[np.float32]
    outputs: npt.NDArray[np.float32]


class Monitor(Protocol):
    """Made with its config, a store and a secret; thread-safe.

    A class that is registered as a plugin has besides `api_version` and a `Config` that derives
    from `MonitorConfig`, and is made as `Plugin(config, store, secret)`, where `secret` are 32
    bytes that no client knows.
    """

    api_version: ClassVar[int]

    def observe(self, seen: Seen) -> Floats:
        """Score the rows of a request, and remember them.

        Earlier rows of the same request count as earlier requests.

        Args:
            seen: of one client.

        Returns:
            [N], finite; higher is more suspicious.

        Raises:
            StateUnavailable: the store cannot be asked; the policy's `on_fault` decides.

        """
        ...


class MonitorPlugin(Protocol):
    """The class of a monitor, as the registry checks it."""

    api_version: ClassVar[int]
    Config: type[MonitorConfig]

    def __call__(self, config: Any, store: Store, secret: bytes) -> Monitor:
        """A monitor."""
        ...
