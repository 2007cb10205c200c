"""Fréchet distance, kernel distance and Inception Score of generated images, by torchmetrics.

A score is meaningful only beside a floor (real training against real test images) and a ceiling
(noise, or one image repeated), and only for one feature extractor, whose hash is reported with it.
torchmetrics takes a feature network; it gets `nn.Identity` and features that ours computed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from firewall.generate.coverage import Features

#: Smallest log-probability that is passed on. exp(-746) is 0 in float64, and a class of probability
#: 0 in every row would turn the Inception Score into NaN.
_LEAST_LOG = -700.0


def inception_score(
    log_probabilities: Features, *, splits: int = 10, seed: int = 0
) -> tuple[float, float]:
    """Exponential of the mean divergence of p(y|x) from p(y) (Salimans et al. 2016).

    Args:
        log_probabilities: [N, K] of a classifier.
        splits: random parts over which the score is averaged, at least 2.
        seed: of the split.

    Returns:
        Mean and sample standard deviation over the parts. The score is between 1 and K: high if
        each image clearly belongs to a class and all classes occur. It does not say whether the
        images look real.

    """
    with _isolated(seed):
        metric = InceptionScore(nn.Identity(), splits=splits)
        metric.update(torch.from_numpy(np.maximum(log_probabilities, _LEAST_LOG)))
        mean, deviation = metric.compute()
    return mean.item(), deviation.item()


def frechet_distance(real: Features, generated: Features) -> float:
    """Squared Fréchet distance of two normal distributions (Heusel et al. 2017, arXiv:1706.08500).

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). It is biased upwards for few rows, so compare
    scores at equal numbers of rows only.

    Args:
        real: [N, F] features, N at least 2.
        generated: [M, F] features, M at least 2.

    """
    with _isolated(seed=0):
        # Identity says nothing of its width: torchmetrics learns F from a random input of this
        # shape, in floating point because of `normalize`.
        shape = (1, 1, real.shape[1])
        metric = FrechetInceptionDistance(nn.Identity(), normalize=True, input_img_size=shape)
        metric.update(torch.from_numpy(real), real=True)
        metric.update(torch.from_numpy(generated), real=False)
        distance: float = metric.compute().item()
    # Rounding makes the distance of equal or degenerate sets slightly negative.
    return max(distance, 0.0)


def kernel_distance(
    real: Features, generated: Features, *, subsets: int = 50, rows: int = 500, seed: int = 0
) -> tuple[float, float]:
    """KID: squared maximum mean discrepancy, unbiased (Bińkowski et al. 2018, arXiv:1801.01401).

    The kernel is (x.y / F + 1)^3.

    Args:
        real: [N, F] features.
        generated: [M, F] features.
        subsets: random subsets over which the distance is averaged.
        rows: size of a subset, at most min(N, M).
        seed: of the choice of subsets.

    Returns:
        Mean and standard deviation over the subsets. An unbiased estimate may be slightly negative.

    """
    with _isolated(seed):
        size = min(rows, len(real), len(generated))
        metric = KernelInceptionDistance(nn.Identity(), subsets=subsets, subset_size=size)
        metric.update(torch.from_numpy(real), real=True)
        metric.update(torch.from_numpy(generated), real=False)
        mean, deviation = metric.compute()
    return mean.item(), deviation.item()


@contextmanager
def _isolated(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator, which torchmetrics draws from, and restore it afterwards."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # A few thousand rows of features are meant to be kept.
        warnings.filterwarnings("ignore", message="Metric .* will save all extracted features")
        torch.default_generator.manual_seed(seed)
        yield
