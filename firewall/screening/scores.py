"""Between a classifier's own answers and logits: one place that knows what its numbers mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.bundle.manifest import Manifest
from firewall.bundle.spec import ScoreSpec

Floats = npt.NDArray[np.float32]

#: The least probability of which a logarithm is taken.
LEAST = 1e-12


@dataclass(frozen=True)
class Scores:
    """How the class scores of one classifier are read and written.

    Attributes:
        spec: what they are.
        shape: of one row, as clients see them.
        classes: how many; 2 where a row has one value.

    """

    spec: ScoreSpec
    shape: tuple[int, ...]
    classes: int

    @classmethod
    def of(cls, manifest: Manifest) -> Scores:
        """The scores of a bundle's classifier."""
        return cls(manifest.scores, manifest.score_shape, manifest.classifier.classes)

    def logits(self, answers: npt.NDArray[Any]) -> Floats:
        """[R, *shape] answers of any float type to [R, classes] logits."""
        values = answers.reshape(len(answers), -1)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            if self.spec.activation == "logits":
                if values.shape[1] != 1:
                    return values.astype(np.float32, copy=False)
                found = np.concatenate([np.zeros_like(values), values], axis=1)
            elif values.shape[1] == 1:
                p = values.astype(np.float64)
                found = _log(np.concatenate([1.0 - p, p], axis=1))
            elif self.spec.activation == "softmax":
                found = _log(values)
            else:
                p = values.astype(np.float64)
                found = _log(p) - _log(1.0 - p)
            return found.astype(np.float32)

    def answers(self, log_probabilities: Floats) -> npt.NDArray[Any]:
        """[R, classes] log-probabilities as the classifier would answer them, [R, *shape].

        In place of logits, the log-probabilities; in place of one logit, the log-odds.
        """
        values = log_probabilities
        one = self.classes == 2 and math.prod(self.shape) == 1
        if self.spec.activation != "logits":
            values = np.exp(values[:, 1:] if one else values)
        elif one:
            values = values[:, 1:] - values[:, :1]
        dtype = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}[self.spec.datatype]
        return values.astype(dtype, copy=False).reshape(len(values), *self.shape)


def log_softmax(logits: Floats, *, finite: bool = False) -> Floats:
    """[N, K] logits to log-probabilities; a row that is not finite becomes NaN, and no other.

    Args:
        logits: of any size.
        finite: whether all of them are known to be; spares numpy a change of state.

    """
    if finite:
        shifted: Floats = logits - logits.max(axis=1, keepdims=True)
        shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return shifted
    with np.errstate(invalid="ignore"):
        return log_softmax(logits, finite=True)


def _log(p: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Logarithm of probabilities, bounded where they vanish; NaN stays NaN."""
    found: npt.NDArray[np.float64] = np.log(np.maximum(p.astype(np.float64), LEAST))
    return found
