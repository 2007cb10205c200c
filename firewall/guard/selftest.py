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


@dataclass(frozen=True)
class SelfTest:
    """wire [N, *input shape], log_probabilities [N, K] and statistics [N, D] of both tiers."""

    wire: npt.NDArray[Any]
    log_probabilities: npt.NDArray[np.float32]
    statistics: npt.NDArray[np.float32]

    @classmethod
    def record(cls, compiled: CompiledGuard, wire: npt.NDArray[Any]) -> SelfTest:
        """The answers of a guard that is known to be right."""
        return cls(wire, *compiled.both(wire))

    def to_npz(self) -> bytes:
        """As it lies in a bundle."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            wire=self.wire,
            log_probabilities=self.log_probabilities,
            statistics=self.statistics,
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
                return cls(arrays["wire"], arrays["log_probabilities"], arrays["statistics"])
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleMalformed("selftest.npz: not a self-test") from error

    def run(self, compiled: CompiledGuard) -> None:
        """Compare.

        Raises:
            ParityError: this machine computes something else than the one that made the bundle.

        """
        _check_certificates(compiled, self.wire)
        log_probabilities, statistics = compiled.both(self.wire)
        for name, got, want in (
            ("log_probabilities", log_probabilities, self.log_probabilities),
            ("statistics", statistics, self.statistics),
        ):
            if got.shape != want.shape or not np.allclose(got, want, rtol=RELATIVE, atol=ABSOLUTE):
                worst = (
                    f"by up to {np.abs(got - want).max():.3g}"
                    if got.shape == want.shape
                    else f"in shape, {got.shape} for {want.shape}"
                )
                raise ParityError(f"selftest.npz: {name} differ {worst} from what was recorded")


def _check_certificates(compiled: CompiledGuard, wire: npt.NDArray[Any]) -> None:
    """At radius 0 the least lead is the one that the classifier shows, less a hair for rounding."""
    if not compiled.certifies:
        return
    logits = compiled.cheap(wire).logits
    label, lead = compiled.certify(wire, np.zeros(len(wire), np.float32))
    ordered = np.sort(logits, axis=1)
    shown = ordered[:, -1] - ordered[:, -2]
    low = lead <= shown + ABSOLUTE
    high = lead >= shown - 0.01 - RELATIVE * np.abs(logits).max()
    if not (low & high & (label == logits.argmax(axis=1))).all():
        raise ParityError("certificate.onnx: says something else of an image than the classifier")
