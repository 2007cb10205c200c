"""The classifier of a bundle as its owner's own graph, run by onnxruntime as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from firewall.errors import BundleMalformed, StageFault
from firewall.screening.classifier import Answers, Array
from firewall.screening.graph_limits import check_tensors, rows_of_pass
from firewall.screening.session import Device, open_session

#: Name of the graph in a bundle.
MODEL = "model.onnx"
#: Before the name of a tap, the name of the graph's output that gives it.
FEATURE = "feature."


class LocalModel:
    """Runs `model.onnx`, in passes of as many rows as fit or as the graph takes."""

    def __init__(
        self,
        graph: bytes,
        *,
        scores: str,
        taps: Sequence[str] = (),
        others: Sequence[str] = (),
        threads: int = 0,
        device: Device = "cpu",
    ) -> None:
        """Open the graph.

        Args:
            graph: with one input of images.
            scores: name of the output with the class scores.
            taps: features that it gives, by outputs that are named `FEATURE` and the tap.
            others: further outputs that clients see.
            threads: threads of one inference (0 = one per core).
            device: where to run.

        Raises:
            BundleTooLarge: a tensor of the graph would be too large.
            BundleMalformed: onnxruntime cannot load the graph, or an output is missing.
            ConfigError: `device` is not available.

        """
        self._session = open_session(MODEL, graph, threads, device)
        given = self._session.get_inputs()
        if len(given) != 1:
            raise BundleMalformed(f"{MODEL}: {len(given)} inputs; expected one input of images")
        self._input: str = given[0].name
        shape = given[0].shape
        #: Rows of every pass where the graph fixes them.
        self._fixed = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None
        values = 1
        for size in shape[1:]:
            values *= size if isinstance(size, int) and size > 0 else 1
        self.rows_at_once = self._fixed or (rows_of_pass(values) if device == "cpu" else 1 << 30)
        check_tensors(MODEL, graph, self.rows_at_once if device == "cpu" else None)
        self._scores = scores
        self._features = {FEATURE + tap: tap for tap in taps}
        self._others = tuple(others)
        known = {one.name for one in self._session.get_outputs()}
        missing = [n for n in (scores, *self._features, *self._others) if n not in known]
        if missing:
            raise BundleMalformed(f"{MODEL}: has no output {missing[0]!r}")
        self.provider: str = self._session.get_providers()[0]

    def ready(self) -> bool:
        """Return True: the graph is open."""
        return True

    def infer(self, wire: Array, deadline: float | None, *, scores_only: bool = False) -> Answers:
        """Run the graph on R rows; see `SeparateClassifier`."""
        names = [self._scores]
        if not scores_only:
            names += [*self._features, *self._others]
        most = self.rows_at_once
        passes = [self._run(names, wire[n : n + most]) for n in range(0, len(wire), most)]
        if len(passes) == 1:
            outputs = passes[0]
        else:
            outputs = [np.concatenate(parts) for parts in zip(*passes, strict=True)]
        found = dict(zip(names, outputs, strict=True))
        return Answers(
            found.pop(self._scores),
            {self._features[n]: found[n] for n in names if n in self._features},
            {n: found[n] for n in names if n in self._others},
        )

    def close(self) -> None:
        """Do nothing: the session ends with the object."""

    def _run(self, names: list[str], rows: Array) -> list[Array]:
        count = len(rows)
        if self._fixed is not None and count < self._fixed:
            # Rows do not depend on one another: what fills the pass up does not matter.
            rows = np.concatenate([rows, np.repeat(rows[-1:], self._fixed - count, axis=0)])
        try:
            outputs: list[Any] = self._session.run(names, {self._input: np.ascontiguousarray(rows)})
        except Exception as error:  # onnxruntime raises its own, undocumented classes
            raise StageFault(
                f"{MODEL}: onnxruntime fails on {len(rows)} rows {list(rows.shape[1:])}: "
                f"{str(error).splitlines()[0]}"
            ) from error
        for name, output in zip(names, outputs, strict=True):
            if not output.shape or output.shape[0] != len(rows):
                raise StageFault(
                    f"{MODEL}: output {name!r} is {list(output.shape)} for {len(rows)} rows"
                )
        return [output[:count] for output in outputs]
