"""A guard around a classifier outside its own graphs.

The classifier is asked about the rows first. Views go to it only for rows that the cheap statistics
doubt, all views of a batch in one call. `CompiledGuard` is the other kind, with the classifier
fused into its graphs; whoever decides need not know which one it has.

Graphs of a bundle, each absent where there is nothing for it to do. Images are [N, C, H, W] in
[0, 1]; `wire` is what clients send; `logits` [N, K]; features are named `feature.` and the tap.

    cheap.onnx      wire, logits, features -> cheap statistics [N, Dc]
    views.onnx      wire -> views [V, N, C, H, W]
    expensive.onnx  wire, views, logits [V + 1, N, K] (raw first), features
                    -> log-probabilities [N, K], expensive statistics [N, De]
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from firewall.bundle.spec import InputSpec
from firewall.errors import ConfigError, StageFault, Unsupported
from firewall.screening.classifier import (
    Answers,
    Array,
    SeparateClassifier,
    check_answers,
)
from firewall.screening.compiled import CheapResult, ExpensiveResult, Floats, both_tiers
from firewall.screening.graph_limits import BATCH_ROWS, check_tensors
from firewall.screening.local_model import FEATURE, LocalModel
from firewall.screening.preprocess import images_to_wire
from firewall.screening.scores import Scores
from firewall.screening.session import Device, open_session
from firewall.screening.span import Span

#: Graphs of such a guard, beside the classifier's own.
GRAPHS = ("cheap.onnx", "views.onnx", "expensive.onnx")


class SplitGuard:
    """The graphs before and after a classifier's calls."""

    certifies = False

    def __init__(
        self,
        graphs: Mapping[str, bytes],
        classifier: SeparateClassifier,
        spec: InputSpec,
        scores: Scores,
        *,
        threads: int = 0,
        device: Device = "cpu",
    ) -> None:
        """Open the sessions.

        Args:
            graphs: those of `GRAPHS` that the guard has, by name; others are ignored.
            classifier: between them.
            spec: what clients send, and the classifier takes.
            scores: how the classifier answers.
            threads: threads of one inference (0 = one per core).
            device: where to run.

        Raises:
            BundleTooLarge: a tensor of a graph would be too large.
            BundleMalformed: a graph cannot be loaded.
            ConfigError: `device` is not available.

        """
        self._sessions: dict[str, Any] = {}
        for name in GRAPHS:
            if name in graphs:
                check_tensors(name, graphs[name], BATCH_ROWS)
                self._sessions[name] = open_session(name, graphs[name], threads, device)
        self._takes = {
            name: tuple(one.name for one in session.get_inputs())
            for name, session in self._sessions.items()
        }
        self.classifier = classifier
        self._spec, self._scores = spec, scores
        self.has_expensive = "expensive.onnx" in self._sessions
        self.provider: str = (
            classifier.provider
            if isinstance(classifier, LocalModel)
            else next(iter(self._sessions.values())).get_providers()[0]
        )

    @property
    def remote(self) -> bool:
        """Whether the classifier is served elsewhere."""
        return not isinstance(self.classifier, LocalModel)

    @property
    def rows_at_once(self) -> int:
        """Rows of one pass; how an upstream computes is its own affair."""
        return self.classifier.rows_at_once if isinstance(self.classifier, LocalModel) else 1 << 30

    def with_classifier(self, classifier: SeparateClassifier) -> SplitGuard:
        """Return the same graphs around another classifier."""
        other = copy.copy(self)
        other.classifier = classifier
        return other

    def cheap(self, wire: Array, deadline: float | None = None) -> CheapResult:
        """Ask the classifier about [N, *input shape], and compute the cheap statistics."""
        start = time.perf_counter()
        answers = self.classifier.infer(np.ascontiguousarray(wire), deadline)
        span = Span("upstream" if self.remote else "model", start, time.perf_counter())
        check_answers(answers, len(wire), self._scores)
        logits = self._scores.logits(answers.scores)
        features = {FEATURE + tap: values for tap, values in answers.features.items()}
        statistics = np.empty((len(wire), 0), np.float32)
        if "cheap.onnx" in self._sessions:
            [statistics] = self._run("cheap.onnx", {"wire": wire, "logits": logits, **features})
            _check_rows("cheap.onnx", statistics, len(wire))
        return CheapResult(
            logits, statistics, features, answers.scores, answers.others, span, deadline
        )

    def expensive(self, wire: Array, cheap: CheapResult, rows: Array) -> ExpensiveResult:
        """Ask the classifier about the views of some rows, and compute the other statistics."""
        if not self.has_expensive:
            raise ConfigError("tier: this guard has no expensive tier")
        if len(rows) != len(wire):
            wire = np.ascontiguousarray(wire[rows])
        count, logits = len(rows), cheap.logits[rows]
        feed: dict[str, Array] = {"wire": wire, "logits": logits[None]}
        feed |= {name: values[rows] for name, values in cheap.features.items()}
        if "views.onnx" in self._sessions:
            [views] = self._run("views.onnx", {"wire": wire})
            if views.ndim != 5 or views.shape[1] != count:
                raise StageFault(f"views.onnx: {list(views.shape)} for {count} rows")
            seen = self._scores.logits(self._ask_views(views, cheap.deadline).scores)
            stacked = seen.reshape(len(views), count, -1)
            feed |= {"views": views, "logits": np.concatenate([logits[None], stacked])}
        outputs = self._run("expensive.onnx", feed)
        statistics = outputs[1] if len(outputs) > 1 else np.empty((count, 0), np.float32)
        for output in (outputs[0], statistics):
            _check_rows("expensive.onnx", output, count)
        return ExpensiveResult(outputs[0], statistics)

    def certify(self, wire: Array, radius: Floats) -> tuple[Array, Floats]:
        """Refuse: nothing is known of the layers of such a classifier."""
        raise Unsupported("certificates: the classifier is not part of the guard's graphs")

    def smoothed(self, wire: Array) -> Array:
        """Return the classes [N] that the classifier names."""
        answers = self.classifier.infer(np.ascontiguousarray(wire), None, scores_only=True)
        check_answers(answers, len(wire), self._scores)
        top: Array = self._scores.logits(answers.scores).argmax(axis=1)
        return top

    def both(self, wire: Array, batch: int = 16) -> tuple[Floats, Floats]:
        """Log-probabilities [N, K] and statistics [N, D] of every row."""
        return both_tiers(self, wire, batch)

    def _ask_views(self, views: Floats, deadline: float | None) -> Answers:
        flat = images_to_wire(views.reshape(-1, *views.shape[2:]), self._spec)
        answers = self.classifier.infer(flat, deadline, scores_only=True)
        check_answers(answers, len(flat), self._scores)
        return answers

    def _run(self, name: str, feed: Mapping[str, Array]) -> list[Array]:
        found: list[Array] = self._sessions[name].run(
            None, {one: np.ascontiguousarray(feed[one]) for one in self._takes[name]}
        )
        return found


def _check_rows(name: str, output: Array, rows: int) -> None:
    if output.ndim != 2 or len(output) != rows:
        raise StageFault(f"{name}: {list(output.shape)} for {rows} rows; expected two axes")
