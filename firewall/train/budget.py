"""How much teaching and attacking fits into some minutes, by how long one gradient takes."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from firewall.guard.classifier import Classifier
from firewall.train.examples import gradients_each
from firewall.train.source_stages import Teaching

#: Steps of a lesson's forgeries.
LESSON_STEPS = 5
#: Seconds that a row takes at least, in all that is done with it beside the network.
_LEAST_SECONDS = 0.004
#: Rows whose gradient is timed.
_TIMED = 4
#: What the quick suite takes for a row, in gradients: for each step of iterated attacks (both
#: APGDs, the adaptive ones past one tier and past both with two views), and for each query.
_PER_STEP, _PER_QUERY = 24.0, 0.5
#: Steps and queries that are tried, the most first.
_EFFORTS = ((50, 500), (20, 200), (10, 100), (5, 50))
#: Images for which more steps and queries are given up: fewer make no figure.
_ENOUGH_ROWS = 30
#: Images that are attacked, at least and at most.
_LEAST_ROWS, _MOST_ROWS = 5, 100
#: Images of a lesson, at least and at most.
_LEAST_LESSON, _MOST_LESSON = 16, 400
#: Forgeries that learning stages and the combination are fitted on, at least and at most.
_LEAST_EXAMPLES, _MOST_EXAMPLES = 96, 1600


@dataclass(frozen=True)
class Effort:
    """Of the quick suite.

    Attributes:
        rows: images that are attacked.
        steps: of iterated attacks.
        queries: of black-box attacks, for each image.

    """

    rows: int
    steps: int
    queries: int


def gradient_seconds(classifier: Classifier, x: Tensor) -> float:
    """Time a gradient of the classifier, in seconds a row.

    Args:
        classifier: with gradients.
        x: [N, C, H, W] in [0, 1].

    """
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        point = x[:_TIMED].clone().requires_grad_(True)
        torch.autograd.grad(classifier(point).logits.sum(), point)
        seconds.append((time.perf_counter() - start) / len(point))
    # A small network is not faster than what calls it.
    return max(min(seconds), _LEAST_SECONDS)


def teaching_for(seconds: float, gradient: float, images: int) -> Teaching:
    """Choose how stages learn.

    Args:
        seconds: that it may take.
        gradient: seconds of one.
        images: that there are to learn from.

    """
    gradients = seconds / max(gradient, 1e-6)
    examples = int(min(_MOST_EXAMPLES, max(_LEAST_EXAMPLES, gradients / gradients_each())))
    affordable = gradients / LESSON_STEPS
    rows = min(images, _MOST_LESSON)
    # One pass for the features, and one an epoch for the pixels.
    epochs = int(min(8, affordable / max(1, rows) - 1))
    if epochs < 2:
        epochs = 2
        rows = int(min(rows, max(_LEAST_LESSON, affordable / 3)))
    return Teaching(rows, epochs, examples)


def effort_for(seconds: float, gradient: float, images: int) -> Effort:
    """Choose how a guard is attacked; arguments as of `teaching_for`."""
    affordable = seconds / max(gradient, 1e-6)
    for steps, queries in _EFFORTS:
        rows = int(affordable / (_PER_STEP * steps + _PER_QUERY * queries))
        if rows >= min(images, _ENOUGH_ROWS):
            break
    rows = max(_LEAST_ROWS, min(rows, _MOST_ROWS))
    return Effort(min(rows, images), steps, queries)
