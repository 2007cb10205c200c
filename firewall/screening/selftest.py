"""Inputs and answers stored in a bundle, by which a server proves itself before it is ready."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.errors import BundleMalformed, FirewallError, ParityError
from firewall.screening.classifier import Answers, Recording, Replay
from firewall.screening.compiled import GuardGraphs
from firewall.screening.split import SplitGuard

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
        answers: [(V + 1) * N, *score shape] of a classifier elsewhere, views after rows; None of
            one in the bundle.

    """

    wire: npt.NDArray[Any]
    log_probabilities: npt.NDArray[np.float32]
    statistics: npt.NDArray[np.float32]
    leads: npt.NDArray[np.float32]
    answers: npt.NDArray[Any] | None = None

    @classmethod
    def record(cls, compiled: GuardGraphs, wire: npt.NDArray[Any]) -> SelfTest:
        """The answers of a guard that is known to be right."""
        if not (isinstance(compiled, SplitGuard) and compiled.remote):
            return cls(wire, *compiled.both(wire), _leads(compiled, wire))
        recorded, answers = _record(compiled, wire)
        return cls(wire, *recorded, _leads(compiled, wire), answers)

    def to_npz(self) -> bytes:
        """As it lies in a bundle."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {
            "wire": self.wire,
            "log_probabilities": self.log_probabilities,
            "statistics": self.statistics,
            "leads": self.leads,
        }
        if self.answers is not None:
            arrays["answers"] = self.answers
        np.savez_compressed(buffer, **arrays)
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
                return cls(
                    wire,
                    arrays["log_probabilities"],
                    arrays["statistics"],
                    leads,
                    arrays.get("answers"),
                )
        except Exception as error:  # zip, zlib, numpy: each has its own
            raise BundleMalformed("selftest.npz: not a self-test") from error

    def run(self, compiled: GuardGraphs) -> None:
        """Compare what this machine computes with what was recorded.

        A classifier that is served elsewhere is replaced by its recorded answers: its server may
        be down, and this machine does not compute them. `same_classifier` compares that one.

        Raises:
            ParityError: this machine computes something else than the one that made the bundle.
            BundleMalformed: a graph fails, for instance because it takes too much memory.

        """
        if isinstance(compiled, SplitGuard) and compiled.remote:
            if self.answers is None:
                raise BundleMalformed("selftest.npz: has no answers of the remote classifier")
            compiled = compiled.with_classifier(Replay(Answers(self.answers)))
        try:
            log_probabilities, statistics = compiled.both(self.wire, batch=len(self.wire))
            leads = _leads(compiled, self.wire)
        except FirewallError:
            raise
        except Exception as error:  # onnxruntime raises its own, undocumented classes
            raise BundleMalformed(
                "selftest.npz: a graph of the bundle fails on these rows, or takes more memory "
                "than a pass may"
            ) from error
        for name, got, want in (
            ("log_probabilities", log_probabilities, self.log_probabilities),
            ("statistics", statistics, self.statistics),
            ("leads", leads, self.leads),
        ):
            if got.shape != want.shape or not np.allclose(got, want, rtol=RELATIVE, atol=ABSOLUTE):
                worst = (
                    f"by up to {np.abs(got - want).max():.3g}"
                    if got.shape == want.shape
                    else f"in shape, {got.shape} for {want.shape}"
                )
                raise ParityError(f"selftest.npz: {name} differ {worst} from what was recorded")


def same_classifier(stored: SelfTest, guard: SplitGuard) -> None:
    """Ask a served classifier what it was asked when the guard was calibrated.

    Raises:
        ParityError: its answers differ: another model, for which nothing is promised.
        UpstreamError: it answers another number of classes.
        FirewallError: it does not answer.

    """
    _, got = _record(guard, stored.wire)
    want = stored.answers
    if want is None or got.shape != want.shape or not np.allclose(got, want, rtol=0.02, atol=0.02):
        raise ParityError(
            "upstream: answers other than the classifier that this guard was calibrated for, so "
            "its false-positive rate does not hold; make a guard of this classifier with firewall "
            "guard"
        )


def _record(
    guard: SplitGuard, wire: npt.NDArray[Any]
) -> tuple[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], npt.NDArray[Any]]:
    """What the guard computes of rows, and what its classifier answers, in the order asked."""
    heard = Recording(guard.classifier)
    computed = guard.with_classifier(heard).both(wire, batch=len(wire))
    return computed, np.concatenate([answers.scores for answers in heard.answers])


def _leads(compiled: GuardGraphs, wire: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if not compiled.certifies:
        return np.empty((0, len(wire)), np.float32)
    radii = [np.full(len(wire), radius, np.float32) for radius in RADII]
    return np.stack([compiled.certify(wire, radius)[1] for radius in radii])
