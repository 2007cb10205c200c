"""Randomised smoothing (Cohen, Rosenfeld, Kolter 2019, arXiv:1902.02918): certificates for any
classifier, by what it says of many noisy copies. Imports no torch.

The class is chosen on some copies and counted on others. Were the true share of its votes p, no
image within sigma * Phi^-1(p) in L2 has another majority; p is bounded from below by Clopper and
Pearson, so that the certificate holds but for the probability of failure. It speaks of the
majority, the smoothed classifier, and not of what the classifier says of the image itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.bundle.spec import InputSpec
from firewall.documents import parse_json
from firewall.errors import BundleMalformed
from firewall.screening.certificate import Certificate
from firewall.screening.preprocess import add_to_wire

#: Noisy copies that are classified at a time.
_BATCH = 128


@dataclass(frozen=True)
class Smoothing:
    """How certificates are drawn.

    Attributes:
        sigma: standard deviation of the noise, where values lie in [0, 1].
        selection: copies on which the class is chosen.
        draws: copies on which it is counted.
        failure: probability that a certificate does not hold.
        radii: [draws + 1], the certified L2 radius by count; 0 abstains.

    """

    sigma: float
    selection: int
    draws: int
    failure: float
    radii: tuple[float, ...]

    def __post_init__(self) -> None:
        if not (self.sigma > 0 and self.selection > 0 and self.draws > 0 and 0 < self.failure < 1):
            raise ValueError("sigma, selection, draws and failure are positive; failure below 1")
        if len(self.radii) != self.draws + 1 or list(self.radii) != sorted(self.radii):
            raise ValueError("radii: expected a rising number for each count")
        if not (np.isfinite(self.radii).all() and self.radii[0] >= 0):
            raise ValueError("radii: expected finite numbers, 0 or more")

    def certify(
        self,
        classify: Callable[[npt.NDArray[Any]], npt.NDArray[np.integer]],
        wire: npt.NDArray[Any],
        spec: InputSpec,
        rng: np.random.Generator,
    ) -> list[Certificate]:
        """Certificates of the rows; radius 0 where the vote is too close.

        Args:
            classify: [M, *input shape] of the wire's datatype to top classes [M].
            wire: the rows.
            spec: of the wire.
            rng: of the noise; whoever attacks must not know its seed.

        """
        return [self._row(classify, wire[row], spec, rng) for row in range(len(wire))]

    def _row(
        self,
        classify: Callable[[npt.NDArray[Any]], npt.NDArray[np.integer]],
        row: npt.NDArray[Any],
        spec: InputSpec,
        rng: np.random.Generator,
    ) -> Certificate:
        top = int(np.bincount(self._votes(classify, row, spec, rng, self.selection)).argmax())
        count = int((self._votes(classify, row, spec, rng, self.draws) == top).sum())
        return Certificate(top, "l2", self.radii[count], 1.0 - self.failure)

    def _votes(
        self,
        classify: Callable[[npt.NDArray[Any]], npt.NDArray[np.integer]],
        row: npt.NDArray[Any],
        spec: InputSpec,
        rng: np.random.Generator,
        count: int,
    ) -> npt.NDArray[np.integer]:
        votes: list[npt.NDArray[np.integer]] = []
        for start in range(0, count, _BATCH):
            size = (min(_BATCH, count - start), spec.channels, spec.height, spec.width)
            noise = rng.standard_normal(size, np.float32) * np.float32(self.sigma)
            votes.append(classify(add_to_wire(row, noise, spec)))
        return np.concatenate(votes)

    def to_json(self) -> bytes:
        """As it lies in a bundle."""
        return json.dumps(vars(self), allow_nan=False).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Smoothing:
        """Read what `to_json` wrote.

        Raises:
            BundleMalformed: it is something else.

        """
        body = parse_json(text, "smoothing.json")
        try:
            return cls(
                float(body["sigma"]),
                int(body["selection"]),
                int(body["draws"]),
                float(body["failure"]),
                tuple(float(radius) for radius in body["radii"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BundleMalformed(f"smoothing.json: {error}") from error
