"""The least L2 perturbation that fools: decoupled direction and norm (Rony et al. 2019,
arXiv:1811.09600).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from firewall.attack.gradient import Model
from firewall.attack.losses import cross_entropy


@dataclass(frozen=True)
class DecoupledNorm:
    """Settings.

    Attributes:
        steps: of the search.
        shrink: share by which the norm goes down where the image fools, and up where not.
        start: the first norm, as a root mean square a value, in units of the image batch.

    """

    steps: int
    shrink: float = 0.08
    start: float = 1.5 / 255

    def __call__(self, model: Model, x: Tensor, label: Tensor) -> Tensor:
        """Forge [N, C, H, W] images of labels [N]; rows that never fooled are the last tried.

        What is tried is rounded to eight bits, so that what fools still does when it is saved.
        """
        size = x[0].numel() ** 0.5
        norm = torch.full((len(x), 1, 1, 1), self.start * size)
        least = torch.full((len(x),), torch.inf)
        best = x.clone()
        delta = torch.zeros_like(x)
        for step in range(self.steps + 1):
            point = ((x + delta) * 255).round().clamp(0, 255) / 255
            point.requires_grad_(True)
            logits = model(point)
            (gradient,) = torch.autograd.grad(cross_entropy(logits, label).sum(), point)
            point = point.detach()
            fools = logits.detach().argmax(dim=1) != label
            length = torch.linalg.vector_norm((point - x).flatten(1), dim=1)
            better = fools & (length < least) | ~torch.isfinite(least)
            best[better] = point[better]
            least = torch.where(fools & (length < least), length, least)
            if step == self.steps:
                break
            # Long steps first, by the cosine from 1 to 0.01.
            reach = 0.01 + 0.99 * (1 + torch.cos(torch.tensor(torch.pi * step / self.steps))) / 2
            norm = norm * torch.where(fools, 1 - self.shrink, 1 + self.shrink).view(-1, 1, 1, 1)
            moved = delta + reach * norm * _unit(gradient)
            delta = (x + norm * _unit(moved)).clamp(0.0, 1.0) - x
        return best


def _unit(x: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1).clamp_min(1e-12)
    return x / length.view(-1, 1, 1, 1)
