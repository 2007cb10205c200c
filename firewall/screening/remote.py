"""A guard around a classifier that is served elsewhere: graphs before and after its one call.

Answers what `CompiledGuard` answers, so that whoever decides need not know where the classifier is.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import Field, ValidationError

from firewall.bundle.spec import Spec
from firewall.documents import parse_json
from firewall.errors import BundleMalformed, StageFault, Unsupported, UpstreamError
from firewall.screening.compiled import Array, CheapResult, ExpensiveResult, Floats
from firewall.screening.graph_limits import BATCH_ROWS, check_tensors
from firewall.screening.session import Device, open_session
from firewall.screening.span import Span
from firewall.validation import describe

#: Below which a probability is taken for this: its logarithm has to be a number.
_LEAST = 1e-12
_ALL, _STATISTICS = "log_probabilities", "statistics"


class RemoteClassifier(Protocol):
    """The classifier behind the guard."""

    def ready(self) -> bool:
        """Whether it answers."""

    def infer(self, wire: Array, deadline: float | None) -> Floats:
        """[R, *input shape] of the wire's datatype to [R, K].

        Args:
            wire: rows, raw ones and views of them.
            deadline: `time.monotonic()` by which the answer is due; None is its own timeout.

        Raises:
            FirewallError: as the upstream answered.

        """

    def close(self) -> None:
        """Let go of the connection."""


class RemoteSpec(Spec):
    """`remote.json` of a bundle: how the graphs before and after the classifier fit together."""

    #: Meaning of the classifier's output.
    output: Literal["logits", "probabilities"] = "logits"
    #: Detectors whose statistics `pre.onnx` and `post.onnx` give, in order.
    pre: tuple[str, ...] = ()
    post: tuple[str, ...] = ()
    views: int = Field(ge=0, le=64)

    def logits(self, answers: Floats) -> Floats:
        """[R, K] answers as logits."""
        if self.output == "logits":
            return answers
        found: Floats = np.log(np.maximum(answers, _LEAST)).astype(np.float32)
        return found

    @classmethod
    def from_json(cls, text: bytes) -> RemoteSpec:
        """Parse `remote.json`.

        Raises:
            BundleMalformed: the text is not such a file; the error names the wrong key.

        """
        try:
            return cls.model_validate(parse_json(text, "remote.json"))
        except ValidationError as error:
            raise BundleMalformed(f"remote.json: {describe(error)}") from error

    def to_json(self) -> bytes:
        """Serialise to the bytes that are stored."""
        return json.dumps(self.model_dump(mode="json"), allow_nan=False).encode()


@dataclass(frozen=True)
class Replay:
    """Stands for the classifier while a bundle tests itself: answers what was recorded.

    Attributes:
        answers: [R, K], row by row as they were asked for.

    """

    answers: Floats

    def ready(self) -> bool:
        """Always."""
        return True

    def infer(self, wire: Array, deadline: float | None) -> Floats:
        """What was recorded, whatever is asked."""
        if len(wire) != len(self.answers):
            raise StageFault(f"replay: {len(wire)} rows; {len(self.answers)} were recorded")
        return self.answers

    def close(self) -> None:
        """Nothing to let go of."""


class Recording:
    """Hands on to a classifier, and keeps what it says."""

    def __init__(self, classifier: RemoteClassifier) -> None:
        self._classifier = classifier
        self.answers: list[Floats] = []

    def ready(self) -> bool:
        """The classifier's own."""
        return self._classifier.ready()

    def infer(self, wire: Array, deadline: float | None) -> Floats:
        """The classifier's own."""
        said = self._classifier.infer(wire, deadline)
        self.answers.append(said)
        return said

    def close(self) -> None:
        """Whoever owns the classifier closes it."""


def check_answers(answers: Floats, rows: int, classes: int | None) -> None:
    """Check that a classifier's answer has the shape that the guard was calibrated with.

    Args:
        answers: what it answers.
        rows: that were asked.
        classes: that the guard was calibrated with; None takes any number.

    Raises:
        UpstreamError: it answers another number of rows or classes.

    """
    if answers.ndim != 2 or len(answers) != rows:
        raise UpstreamError(
            f"upstream: answers {list(answers.shape)} for {rows} rows; expected [rows, classes]"
        )
    if classes is not None and answers.shape[1] != classes:
        raise UpstreamError(
            f"upstream: answers {answers.shape[1]} classes; calibrated with {classes}"
        )


class RemoteGuard:
    """Both halves, with the classifier between them. All views are one call."""

    certifies = False
    has_expensive = True
    #: That is the other server's affair.
    rows_at_once = 1 << 30

    def __init__(
        self,
        graphs: Mapping[str, bytes],
        spec: RemoteSpec,
        detectors: Sequence[str],
        cheap: int,
        classifier: RemoteClassifier,
        *,
        threads: int = 0,
        device: Device = "cpu",
    ) -> None:
        """Open the sessions.

        Args:
            graphs: `post.onnx`, and `pre.onnx` where there is anything before the call.
            spec: how they fit together.
            detectors: names in the order of the calibration, the cheap ones first.
            cheap: how many of them are.
            classifier: what is between.
            threads: of one inference; 0 is one a core.
            device: where to run.

        Raises:
            BundleTooLarge: a tensor of a graph would be too large.
            BundleMalformed: a graph cannot be loaded, or names differ.
            ConfigError: `device` is not available.

        """
        given = [*spec.pre, *spec.post]
        if sorted(given) != sorted(detectors):
            raise BundleMalformed(
                f"remote.json: detectors {', '.join(given)}; the calibration has "
                f"{', '.join(detectors)}"
            )
        for name, graph in graphs.items():
            if name in ("pre.onnx", "post.onnx"):
                check_tensors(name, graph, BATCH_ROWS)
        self._pre = (
            open_session("pre.onnx", graphs["pre.onnx"], threads, device)
            if "pre.onnx" in graphs
            else None
        )
        self._post = open_session("post.onnx", graphs["post.onnx"], threads, device)
        self._spec = spec
        self._order = [given.index(name) for name in detectors]
        self._cheap = cheap
        self.classifier = classifier
        self._classes = _classes(self._post)
        self.provider: str = self._post.get_providers()[0]

    def with_classifier(self, classifier: RemoteClassifier) -> RemoteGuard:
        """The same halves around another classifier."""
        other = copy.copy(self)
        other.classifier = classifier
        return other

    def cheap(self, wire: Array, deadline: float | None = None) -> CheapResult:
        """Everything there is to know of [N, *input shape]: one call has all of it.

        What belongs to the expensive tier waits in `features` for `expensive`.
        """
        views, before = self._before(wire)
        asked = np.concatenate([wire[None], views]).reshape(-1, *wire.shape[1:])
        start = time.perf_counter()
        answers = self.classifier.infer(np.ascontiguousarray(asked), deadline)
        span = Span("upstream", start, time.perf_counter())
        check_answers(answers, len(asked), self._classes)
        by_view = self._spec.logits(answers).reshape(self._spec.views + 1, len(wire), -1)
        outputs = self._post.run(None, {"wire": wire, "logits": by_view})
        after = outputs[1] if len(outputs) > 1 else np.empty((len(wire), 0), np.float32)
        if len(outputs[0]) != len(wire) or len(after) != len(wire):
            raise StageFault(f"post.onnx: {len(outputs[0])} rows for {len(wire)}")
        statistics = np.hstack([before, after])[:, self._order]
        return CheapResult(
            by_view[0],
            statistics[:, : self._cheap],
            {_ALL: outputs[0], _STATISTICS: statistics[:, self._cheap :]},
            answers=answers[: len(wire)],
            asked=span,
        )

    def expensive(self, wire: Array, cheap: CheapResult, rows: Array) -> ExpensiveResult:
        """What `cheap` has found of some rows."""
        return ExpensiveResult(cheap.features[_ALL][rows], cheap.features[_STATISTICS][rows])

    def certify(self, wire: Array, radius: Floats) -> tuple[Array, Floats]:
        """Of a classifier elsewhere nothing can be bounded."""
        raise Unsupported("certificates: the classifier is served elsewhere")

    def smoothed(self, wire: Array) -> Array:
        """Of a classifier elsewhere nothing is smoothed."""
        raise Unsupported("certificates: the classifier is served elsewhere")

    def both(self, wire: Array, batch: int = 16) -> tuple[Floats, Floats]:
        """Log-probabilities [N, K] and statistics [N, D] of every row."""
        parts = [
            self.cheap(np.ascontiguousarray(wire[start : start + batch]))
            for start in range(0, len(wire), batch)
        ]
        return (
            np.concatenate([part.features[_ALL] for part in parts]),
            np.concatenate(
                [np.hstack([part.statistics, part.features[_STATISTICS]]) for part in parts]
            ),
        )

    def _before(self, wire: Array) -> tuple[Array, Floats]:
        """Views [V, N, *input shape] and statistics [N, D]."""
        views: Any = np.empty((0, *wire.shape), wire.dtype)
        statistics = np.empty((len(wire), 0), np.float32)
        if self._pre is not None:
            outputs = self._pre.run(None, {"wire": wire})
            if self._spec.views:
                views = outputs[0]
            if self._spec.pre:
                statistics = outputs[-1]
        if views.shape[:2] != (self._spec.views, len(wire)) or len(statistics) != len(wire):
            raise StageFault(f"pre.onnx: {list(views.shape)} for {len(wire)} rows")
        return views, statistics


def _classes(post: Any) -> int | None:
    """Classes that `post.onnx` takes; None where its graph leaves them open."""
    for source in post.get_inputs():
        if source.name == "logits" and len(source.shape) == 3:
            size = source.shape[2]
            return size if isinstance(size, int) else None
    return None
