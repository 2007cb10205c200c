"""A compiled guard, run by onnxruntime; imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from firewall.errors import ConfigError, StageFault
from firewall.screening.graph_limits import BATCH_ROWS, check_tensors
from firewall.screening.graph_split import WORTH
from firewall.screening.scores import log_softmax
from firewall.screening.session import Device, open_session
from firewall.screening.span import Span
from firewall.screening.tiers import Feed, open_tiers

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class CheapResult:
    """What the cheap tier found of N rows.

    Attributes:
        logits: [N, K].
        statistics: [N, Dc].
        features: by name, what the expensive tier takes over.
        answers: [N, *score shape], the classifier's own answer; None where that is the logits.
        others: by name, further outputs of the classifier, which pass through.
        asked: when a classifier outside the guard's graphs ran.
        deadline: `time.monotonic()` by which the whole answer is due.

    """

    logits: Floats
    statistics: Floats
    features: dict[str, Floats]
    answers: Array | None = None
    others: Mapping[str, Array] = field(default_factory=dict)
    asked: Span | None = None
    deadline: float | None = None


@dataclass(frozen=True)
class ExpensiveResult:
    """Of N rows: log-probabilities [N, K] and statistics [N, De]."""

    log_probabilities: Floats
    statistics: Floats


class GuardGraphs(Protocol):
    """What decides asks of a guard, wherever its classifier is."""

    provider: str

    @property
    def rows_at_once(self) -> int:
        """Rows of one pass, at most; more of a batch are passes after one another."""

    @property
    def certifies(self) -> bool:
        """Whether `certify` can be asked."""

    @property
    def has_expensive(self) -> bool:
        """Whether there is a second tier."""

    def cheap(self, wire: Array, deadline: float | None = None) -> CheapResult:
        """The first tier on [N, *input shape], due at a `time.monotonic()`."""

    def expensive(self, wire: Array, cheap: CheapResult, rows: Array) -> ExpensiveResult:
        """The second on some rows (indices) of a batch that the first has seen."""

    def certify(self, wire: Array, radius: Floats) -> tuple[Array, Floats]:
        """Classes [N] and their certified leads [N]."""

    def smoothed(self, wire: Array) -> Array:
        """Classes [N] by which noisy copies vote."""

    def both(self, wire: Array, batch: int = 16) -> tuple[Floats, Floats]:
        """Log-probabilities [N, K] and statistics [N, D] of every row."""


class CompiledGuard:
    """The two tiers of a guard around an embedded classifier."""

    def __init__(
        self,
        graphs: Mapping[str, bytes],
        *,
        threads: int = 0,
        device: Device = "cpu",
        shared_from: int = WORTH,
    ) -> None:
        """Open the sessions.

        Args:
            graphs: `cheap.onnx`; `expensive.onnx` if there is an expensive tier;
                `certificate.onnx` if the classifier can be bounded; `smoothed.onnx` if smoothing
                has a denoiser of its own.
            threads: of one inference; 0 is one a core.
            device: where to run.
            shared_from: bytes of weights in both tiers, from which on they are kept once.

        Raises:
            BundleTooLarge: a tensor of a graph would be too large.
            BundleMalformed: onnxruntime cannot load a graph.
            ConfigError: `device` is not available.

        """
        for name, graph in graphs.items():
            if name.endswith(".onnx"):
                # On CUDA, and for certificates, batches are not split into passes.
                split = device == "cpu" and name != "certificate.onnx"
                check_tensors(name, graph, None if split else BATCH_ROWS)
        self._tiers = open_tiers(graphs, threads, device, shared_from)
        self._certificate = (
            open_session(
                "certificate.onnx", graphs["certificate.onnx"], threads, device, exact=True
            )
            if "certificate.onnx" in graphs
            else None
        )
        self._smoothed = (
            open_session("smoothed.onnx", graphs["smoothed.onnx"], threads, device)
            if "smoothed.onnx" in graphs
            else None
        )
        self._cheap_outputs = self._tiers.cheap_outputs
        self.rows_at_once = self._tiers.rows_at_once
        self.provider = self._tiers.provider

    @property
    def has_expensive(self) -> bool:
        """Whether there is a second tier."""
        return self._tiers.has_expensive

    def cheap(self, wire: Array, deadline: float | None = None) -> CheapResult:
        """Run the cheap tier on [N, *input shape] of the wire's datatype.

        Args:
            wire: the rows.
            deadline: of a classifier elsewhere; this one is here.

        """
        outputs = self._passes(self._tiers.cheap, {"wire": wire}, len(wire))
        found = dict(zip(self._cheap_outputs, outputs, strict=True))
        logits = found.pop("logits")
        statistics = found.pop("statistics", None)
        if statistics is None:
            statistics = np.empty((len(wire), 0), np.float32)
        _check_rows("cheap", len(wire), logits, statistics)
        return CheapResult(logits, statistics, found)

    def expensive(self, wire: Array, cheap: CheapResult, rows: Array) -> ExpensiveResult:
        """Run the expensive tier on the rows (indices) of a batch that the cheap tier has seen."""
        if not self._tiers.has_expensive:
            raise ConfigError("tier: this guard has no expensive tier")
        every = len(rows) == len(wire)
        feed = {"wire": wire, "logits": cheap.logits} | cheap.features
        if not every:
            feed = {name: np.ascontiguousarray(value[rows]) for name, value in feed.items()}
        outputs = self._passes(self._tiers.expensive, feed, len(rows))
        statistics = outputs[1] if len(outputs) > 1 else np.empty((len(rows), 0), np.float32)
        _check_rows("expensive", len(rows), outputs[0], statistics)
        return ExpensiveResult(outputs[0], statistics)

    @property
    def certifies(self) -> bool:
        """Whether `certify` can be asked."""
        return self._certificate is not None

    def certify(self, wire: Array, radius: Floats) -> tuple[Array, Floats]:
        """Bound the classifier on [N, *input shape] of the wire's datatype.

        Args:
            wire: the rows.
            radius: [N] L-infinity, where values lie in [0, 1].

        Returns:
            The classifier's top class [N], and its least lead [N] over any other class within the
            radius: positive certifies it.

        """
        if self._certificate is None:
            raise ConfigError("certificates: the classifier of this guard cannot be bounded")
        label, lead = self._certificate.run(None, {"wire": wire, "radius": radius})
        if label.shape != (len(wire),) or lead.shape != (len(wire),):
            raise StageFault(f"certificates: {list(lead.shape)} for {len(wire)} rows")
        return label, lead

    def smoothed(self, wire: Array) -> Array:
        """The classes [N] by which noisy copies [N, *input shape] vote: behind the denoiser of
        smoothing, or the classifier's own where there is none.
        """
        if self._smoothed is None:
            logits = self.cheap(wire).logits
        else:
            smoothed = self._smoothed
            [logits] = self._passes(
                lambda feed: smoothed.run(None, feed), {"wire": wire}, len(wire)
            )
            _check_rows("smoothed", len(wire), logits)
        top: Array = logits.argmax(axis=1)
        return top

    def _passes(
        self, run: Callable[[Feed], list[Array]], feed: dict[str, Array], rows: int
    ) -> list[Array]:
        """What passes give for so many rows."""
        most = self.rows_at_once
        if rows <= most:
            return run(feed)
        parts = [
            run({name: value[n : n + most] for name, value in feed.items()})
            for n in range(0, rows, most)
        ]
        return [np.concatenate(one) for one in zip(*parts, strict=True)]

    def both(self, wire: Array, batch: int = 16) -> tuple[Floats, Floats]:
        """Both tiers on every row: log-probabilities [N, K] and statistics [N, Dc + De]."""
        return both_tiers(self, wire, batch)


def both_tiers(guard: GuardGraphs, wire: Array, batch: int) -> tuple[Floats, Floats]:
    """Run both tiers of a guard on every row.

    Args:
        guard: of either kind.
        wire: [N, *input shape].
        batch: rows at a time.

    Returns:
        Log-probabilities [N, K] and statistics [N, Dc + De].

    """
    log_probabilities: list[Floats] = []
    statistics: list[Floats] = []
    for start in range(0, len(wire), batch):
        part = np.ascontiguousarray(wire[start : start + batch])
        cheap = guard.cheap(part)
        if guard.has_expensive:
            expensive = guard.expensive(part, cheap, np.arange(len(part)))
            log_probabilities.append(expensive.log_probabilities)
            statistics.append(np.hstack([cheap.statistics, expensive.statistics]))
        else:
            log_probabilities.append(log_softmax(cheap.logits))
            statistics.append(cheap.statistics)
    return np.concatenate(log_probabilities), np.concatenate(statistics)


def _check_rows(tier: str, rows: int, *arrays: Floats) -> None:
    for array in arrays:
        if array.ndim != 2 or len(array) != rows:
            raise StageFault(
                f"the {tier} tier returned {list(array.shape)}; expected {rows} rows of two axes"
            )
