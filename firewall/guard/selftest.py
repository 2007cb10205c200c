"""Inputs and answers stored in a bundle, by which a server proves itself before it is ready."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.errors import BundleMalformed, ParityError
from firewall.guard.compiled import CompiledGuard

#: Largest deviations allowed: other processors round differently, other graphs differ by far more.
RELATIVE = 1e-3
ABSOLUTE = 1e-4
#: At which leads are compared, where values lie in [0, 1].
RADII = (0.0, 0.02, 0.1)


@dataclass(frozen=True)
class SelfTest:
    """Rows and what the guard that is known to be right says of them.

    Attributes:
        wire: [N, *input shape].
        log_probabilities: [N, K] of both tiers.
        statistics: [N, D] of both tiers.
        leads: [R, N] certified leads at each of `RADII`; [0, N] where nothing is certified.

    """

    wire: npt.NDArray[Any]
    log_probabilities: npt.NDArray[np.float32]
    statistics: npt.NDArray[np.float32]
    leads: npt.NDArray[np.float32]

    @classmethod
    def record(cls, compiled: CompiledGuard, wire: npt.NDArray[Any]) -> SelfTest:
        """The answers of a guard that is known to be right."""
        return cls(wire, *compiled.both(wire), _leads(compiled, wire))

    def to_npz(self) -> bytes:
        """As it lies in a bundle."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            wire=self.wire,
            log_probabilities=self.log_probabilities,
            statistics=self.statistics,
            leads=self.leads,
        )
        return buffer.getvalue()

    @classmethod
    def from_npz(cls, data: bytes) -> SelfTest:
        """Read what `to_npz` wrote; pickles are refused.

        Raises:
            BundleMalformed: it is something else.

        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                wire = arrays["wire"]
                # Bundles from before there were certificates have none.
                leads = (
                    arrays["leads"] if "leads" in arrays else np.empty((0, len(wire)), np.float32)
                )
                return cls(wire, arrays["log_probabilities"], arrays["statistics"], leads)
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleMalformed("selftest.npz: not a self-test") from error

    def run(self, compiled: CompiledGuard) -> None:
        """Compare.

        Raises:
            ParityError: this machine computes something else than the one that made the bundle.

        """
        log_probabilities, statistics = compiled.both(self.wire)
        for name, got, want in (
            ("log_probabilities", log_probabilities, self.log_probabilities),
            ("statistics", statistics, self.statistics),
            ("leads", _leads(compiled, self.wire), self.leads),
        ):
            if got.shape != want.shape or not np.allclose(got, want, rtol=RELATIVE, atol=ABSOLUTE):
                worst = (
                    f"by up to {np.abs(got - want).max():.3g}"
                    if got.shape == want.shape
                    else f"in shape, {got.shape} for {want.shape}"
                )
                raise ParityError(f"selftest.npz: {name} differ {worst} from what was recorded")


def _leads(compiled: CompiledGuard, wire: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if not compiled.certifies:
        return np.empty((0, len(wire)), np.float32)
    radii = [np.full(len(wire), radius, np.float32) for radius in RADII]
    return np.stack([compiled.certify(wire, radius)[1] for radius in radii])
