"""A classifier outside the guard's own graphs: a graph beside them, or served elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from firewall.errors import StageFault, UpstreamError
from firewall.screening.scores import Scores

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Answers:
    """What a classifier answers for R rows.

    Attributes:
        scores: [R, *score shape] class scores, of the classifier's own datatype.
        features: by tap, [R, ...] float32; empty where it gives none.
        others: by name, further outputs, [R, ...].

    """

    scores: Array
    features: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    others: Mapping[str, Array] = field(default_factory=dict)


class SeparateClassifier(Protocol):
    """The classifier behind the guard. Thread-safe."""

    def ready(self) -> bool:
        """Whether it answers."""

    def infer(self, wire: Array, deadline: float | None, *, scores_only: bool = False) -> Answers:
        """Ask for R rows.

        Args:
            wire: [R, *input shape] of the wire's datatype: rows of clients, or views of them.
            deadline: `time.monotonic()` by which the answer is due; None is its own timeout.
            scores_only: whether features and other outputs are not needed.

        Raises:
            FirewallError: as the classifier answered.

        """

    def close(self) -> None:
        """Close the connection."""


class Replay:
    """Stands for the classifier while a bundle tests itself: answers what was recorded."""

    def __init__(self, answers: Answers) -> None:
        """Answer from recorded rows, in the order in which they were asked."""
        self._answers = answers
        self._next = 0

    def ready(self) -> bool:
        """Return True: what was recorded can always be asked."""
        return True

    def infer(self, wire: Array, deadline: float | None, *, scores_only: bool = False) -> Answers:
        """Answer the next rows, whatever is asked."""
        first, last = self._next, self._next + len(wire)
        if last > len(self._answers.scores):
            raise StageFault(f"replay: row {last} of {len(self._answers.scores)} recorded ones")
        self._next = last
        features = {name: values[first:last] for name, values in self._answers.features.items()}
        return Answers(self._answers.scores[first:last], features)

    def close(self) -> None:
        """Do nothing: there is no connection."""


class Recording:
    """Hands on to a classifier, and keeps what it answers."""

    def __init__(self, classifier: SeparateClassifier) -> None:
        self._classifier = classifier
        self.answers: list[Answers] = []

    def ready(self) -> bool:
        """Ask the classifier."""
        return self._classifier.ready()

    def infer(self, wire: Array, deadline: float | None, *, scores_only: bool = False) -> Answers:
        """Ask the classifier."""
        answers = self._classifier.infer(wire, deadline, scores_only=scores_only)
        self.answers.append(answers)
        return answers

    def close(self) -> None:
        """Leave it to the owner of the classifier."""


def check_answers(answers: Answers, rows: int, scores: Scores) -> None:
    """Check that an answer has the shape that the guard was calibrated with.

    Args:
        answers: of the classifier.
        rows: that were asked.
        scores: that the guard expects.

    Raises:
        UpstreamError: it answers another number of rows or classes.

    """
    found = answers.scores.shape
    if not found or found[0] != rows:
        raise UpstreamError(
            f"upstream: answers {list(found)} for {rows} rows; expected [rows, classes]"
        )
    if found[1:] != scores.shape:
        if len(found) == 2 and len(scores.shape) == 1:
            raise UpstreamError(
                f"upstream: answers {found[1]} classes; calibrated with {scores.shape[0]}"
            )
        raise UpstreamError(
            f"upstream: answers {list(found[1:])} a row; calibrated with {list(scores.shape)}"
        )
