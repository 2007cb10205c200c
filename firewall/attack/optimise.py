"""Targeted optimisation: any image, moved until the model says what the attacker wants.

Minimises loss(model(x), target) + weight * mean((x - reference)^2), as targeted adversarial images
were first made (Szegedy et al. 2014, arXiv:1312.6199). From noise and without a weight the result
looks like nothing and is classified as the target (Nguyen et al. 2015, arXiv:1412.1897); with a
weight it looks like the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from firewall.attack.gradient import Model

#: How far the output is from the wanted one: on probabilities (l1, l2), or cross-entropy.
Output = Literal["l1", "l2", "cross-entropy"]
Optimiser = Literal["adam", "gradient-descent"]


@dataclass(frozen=True)
class TargetedOptimisation:
    """Settings of the attack.

    Attributes:
        weight: of the distance to the reference; 0 is any image.
        output: the loss on the output.
        optimiser: how the image is moved.
        steps: of the optimiser.
        rate: its learning rate, in units of the image; gradient descent moves each image by that
            much, in the direction of its gradient.

    """

    weight: float = 0.0
    output: Output = "cross-entropy"
    optimiser: Optimiser = "adam"
    steps: int = 200
    rate: float = 0.01

    def __call__(
        self, model: Model, start: Tensor, target: Tensor, reference: Tensor | None = None
    ) -> Tensor:
        """Optimise a batch.

        Args:
            model: what is attacked.
            start: [N, C, H, W] in [0, 1]: noise, the reference, or any other image.
            target: [N] int64, the classes to reach.
            reference: [N, C, H, W] in [0, 1], to stay near; needed when there is a weight.

        Returns:
            [N, C, H, W] in [0, 1]: of each row the image that reached its target nearest to the
            reference, else the last one.

        Raises:
            ValueError: a weight without a reference.

        """
        if self.weight and reference is None:
            raise ValueError("reference: None; a weight needs an image to stay near")
        near = start if reference is None else reference
        point = start.clone()
        best, least = start.clone(), torch.full((len(start),), torch.inf)
        adam = torch.optim.Adam([point], self.rate) if self.optimiser == "adam" else None
        for _ in range(self.steps):
            point.requires_grad_(True)
            logits = model(point)
            away = (point - near).square().flatten(1).mean(dim=1)
            cost = _OUTPUTS[self.output](logits, target) + self.weight * away
            reached = (logits.detach().argmax(dim=1) == target) & (away.detach() < least)
            best[reached], least[reached] = point.detach()[reached], away.detach()[reached]
            if not self.weight and bool(torch.isfinite(least).all()):
                # Nothing to come nearer to.
                return best
            (gradient,) = torch.autograd.grad(cost.sum(), point)
            point.requires_grad_(False)
            if adam is not None:
                point.grad = gradient
                adam.step()
            else:
                size = gradient.flatten(1).abs().amax(dim=1).clamp_min(1e-12)
                point -= self.rate * gradient / size.view(-1, 1, 1, 1)
            point.clamp_(0.0, 1.0)
        lost = torch.isinf(least)
        best[lost] = point[lost]
        return best


def _l1(logits: Tensor, target: Tensor) -> Tensor:
    wanted = F.one_hot(target, logits.shape[1])
    return (logits.softmax(dim=1) - wanted).abs().sum(dim=1)


def _l2(logits: Tensor, target: Tensor) -> Tensor:
    wanted = F.one_hot(target, logits.shape[1])
    return (logits.softmax(dim=1) - wanted).square().sum(dim=1)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, reduction="none")


_OUTPUTS: dict[Output, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": _l1,
    "l2": _l2,
    "cross-entropy": _cross_entropy,
}
