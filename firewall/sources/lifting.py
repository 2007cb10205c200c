"""The gate between a classifier's graph and its lift: both say the same, or nothing is attacked."""

from __future__ import annotations

import numpy as np
import torch

from firewall.bundle.spec import InputSpec
from firewall.errors import ParityError, Unsupported
from firewall.guard.compile import example
from firewall.guard.wire_input import WireInput
from firewall.lift.classifier import LiftedClassifier
from firewall.screening.classifier import Array, SeparateClassifier
from firewall.screening.scores import Scores, log_softmax

#: Largest deviation of a log-probability that counts, relative and absolute.
_RELATIVE, _ABSOLUTE = 2e-3, 2e-3
#: Below this, log-probabilities are rounding.
_LEAST = -12.0
#: Images and noise that are compared.
_ROWS = 8


def check_lift(
    lifted: LiftedClassifier,
    model: SeparateClassifier,
    spec: InputSpec,
    scores: Scores,
    wire: Array,
) -> float:
    """Compare a lifted graph with onnxruntime, on images and on noise.

    Args:
        lifted: the graph in torch.
        model: the graph in onnxruntime.
        spec: of the input.
        scores: how answers are read.
        wire: [N, ...] rows of images.

    Returns:
        The largest deviation of a log-probability.

    Raises:
        ParityError: they differ.
        Unsupported: the lift fails on such rows.

    """
    worst = 0.0
    for what, rows in (("an image", wire[:_ROWS]), ("noise", example(spec, 3, seed=1).numpy())):
        expected = log_softmax(scores.logits(model.infer(rows, None).scores))
        x = WireInput(spec)(torch.from_numpy(np.ascontiguousarray(rows)))
        try:
            with torch.no_grad():
                found = log_softmax(lifted(x).logits.numpy())
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise Unsupported(
                f"the lift of this model fails: {str(error).splitlines()[0]}"
            ) from error
        want, got = np.maximum(expected, _LEAST), np.maximum(found, _LEAST)
        if not np.allclose(got, want, rtol=_RELATIVE, atol=_ABSOLUTE):
            raise ParityError(
                f"the lift of this model differs from onnxruntime on {what}, by "
                f"{np.abs(got - want).max():.3g} in a log-probability; it is not attacked with "
                "gradients of another function"
            )
        worst = max(worst, float(np.abs(got - want).max()))
    return worst
