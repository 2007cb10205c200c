"""Adversarial weight perturbation (Wu, Xia, Wang 2020, arXiv:2004.05884): train where the loss is
high not only for the images' but also for the weights' worst neighbours, so that it is flat.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def perturbed(network: nn.Module, loss: Tensor, gamma: float) -> Iterator[None]:
    """Within, each weight matrix is moved up the gradient of `loss` by gamma of its own norm.

    Args:
        network: whose weights move; they are put back, bit for bit.
        loss: on the batch, with a graph; it is used up.
        gamma: relative size, such as 0.01.

    """
    weights = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    gradients = torch.autograd.grad(loss, weights)
    kept = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            size: Tensor = gamma * weight.norm() / (gradient.norm() + 1e-12)
            weight.add_(size * gradient)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, kept, strict=True):
                weight.copy_(old)
