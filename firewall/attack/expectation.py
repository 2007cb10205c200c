"""Expectation over transformation (Athalye et al. 2018, arXiv:1707.07397).

Where a model is random, or an image will be, one draw's gradient is a rumour: the mean over several
is what an attacker follows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from firewall.attack.gradient import Model


@dataclass(frozen=True)
class Expectation:
    """A random model's mean log-probabilities.

    Attributes:
        model: [N, C, H, W] to logits [N, K], another answer each time.
        draws: how many are averaged.

    """

    model: Model
    draws: int = 16

    def __call__(self, x: Tensor) -> Tensor:
        """[N, K]."""
        drawn = [torch.log_softmax(self.model(x), dim=1) for _ in range(self.draws)]
        return torch.stack(drawn).mean(dim=0)


def is_random(model: Model, x: Tensor) -> bool:
    """Whether the same batch is answered differently, by more than rounding."""
    with torch.no_grad():
        first, second = model(x), model(x)
    scale = float(first.abs().amax()) + 1e-12
    return float((first - second).abs().amax()) > 1e-4 * scale
