"""Auto-PGD: no step size to choose (Croce, Hein 2020, arXiv:2003.01690).

Momentum steps of twice the radius, halved at checkpoints where the loss stalls, each time going
back to the best point. With DLR it sees through logits that are scaled to mask the gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from firewall.attack.gradient import Model
from firewall.attack.losses import Loss, aimed_dlr, cross_entropy
from firewall.attack.norms import Linf, Norm

#: Momentum and the least share of steps between checkpoints that must raise the loss (section 3).
_ALPHA, _RHO = 0.75, 0.75


@dataclass(frozen=True)
class AutoPGD:
    """Settings of one attack.

    Attributes:
        radius: of the ball, in units of the image batch.
        steps: forward and backward passes of one run.
        norm: the ball.
        loss: `cross_entropy` or `dlr`.
        restarts: runs from other random starts, on rows that still stand.

    """

    radius: float
    steps: int = 100
    norm: Norm = field(default_factory=Linf)
    loss: Loss = cross_entropy
    restarts: int = 1

    def __call__(self, model: Model, x: Tensor, label: Tensor, *, seed: int = 0) -> Tensor:
        """Attack a batch, away from its labels.

        Args:
            model: what is attacked.
            x: [N, C, H, W] in [0, 1].
            label: [N] int64, the classes to leave.
            seed: of the random starts.

        Returns:
            [N, C, H, W] in [0, 1], within the radius: broken rows where one was found, else the
            best point seen.

        """
        generator = torch.Generator().manual_seed(seed)
        best = x.clone()
        open_rows = torch.arange(len(x), device=x.device)
        for _ in range(self.restarts):
            found, broken = self._run(model, x[open_rows], label[open_rows], self.loss, generator)
            best[open_rows] = found
            open_rows = open_rows[~broken]
            if not len(open_rows):
                break
        return best

    def _run(
        self, model: Model, x: Tensor, label: Tensor, loss: Loss, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """One run: best points [N, ...] and which rows are broken [N]."""
        checkpoints = _checkpoints(self.steps)
        rows = len(x)
        point = self._inside(x, x + self.norm.start(x, self.radius, generator))
        previous = point
        value, gradient, wrong = _evaluate(model, point, label, loss)
        best, best_value, best_gradient = point.clone(), value.clone(), gradient.clone()
        broken = wrong.clone()
        result = point.clone()
        step = torch.full((rows,), 2.0 * self.radius, device=x.device)
        raised = torch.zeros(rows, device=x.device)
        last_step, last_best = step.clone(), best_value.clone()
        since = 0
        for number in range(1, self.steps):
            ahead = self._inside(x, point + step.view(-1, 1, 1, 1) * self.norm.direction(gradient))
            alpha = 1.0 if number == 1 else _ALPHA
            moved = self._inside(
                x, point + alpha * (ahead - point) + (1.0 - alpha) * (point - previous)
            )
            previous, point = point, moved
            before = value
            value, gradient, wrong = _evaluate(model, point, label, loss)
            result[wrong & ~broken] = point[wrong & ~broken]
            broken |= wrong
            if bool(broken.all()):
                break
            raised += (value > before).float()
            better = value > best_value
            best[better], best_value[better] = point[better], value[better]
            best_gradient[better] = gradient[better]
            since += 1
            if number in checkpoints:
                stalled = raised < _RHO * since
                stuck = (step == last_step) & (best_value <= last_best)
                halve = stalled | stuck
                last_step, last_best = step.clone(), best_value.clone()
                step = torch.where(halve, step / 2.0, step)
                point = torch.where(halve.view(-1, 1, 1, 1), best, point)
                gradient = torch.where(halve.view(-1, 1, 1, 1), best_gradient, gradient)
                value = torch.where(halve, best_value, value)
                previous = torch.where(halve.view(-1, 1, 1, 1), best, previous)
                raised.zero_()
                since = 0
        result[~broken] = best[~broken]
        return result, broken

    def _inside(self, x: Tensor, point: Tensor) -> Tensor:
        return (x + self.norm.project(point - x, self.radius)).clamp(0.0, 1.0)


@dataclass(frozen=True)
class TargetedAutoPGD:
    """APGD-T: one run of targeted DLR towards each of the most likely wrong classes.

    Attributes:
        radius: of the ball.
        steps: of each run.
        norm: the ball.
        targets: how many classes, the likeliest first (9 in AutoAttack).

    """

    radius: float
    steps: int = 100
    norm: Norm = field(default_factory=Linf)
    targets: int = 9

    def __call__(self, model: Model, x: Tensor, label: Tensor, *, seed: int = 0) -> Tensor:
        """As `AutoPGD`."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            logits = model(x)
        order = logits.scatter(1, label[:, None], -torch.inf).argsort(dim=1, descending=True)
        best = x.clone()
        open_rows = torch.arange(len(x), device=x.device)
        inner = AutoPGD(self.radius, self.steps, self.norm)
        for rank in range(min(self.targets, logits.shape[1] - 1)):
            target = order[open_rows, rank]
            found, broken = inner._run(
                model, x[open_rows], label[open_rows], aimed_dlr(target), generator
            )
            best[open_rows] = found
            open_rows = open_rows[~broken]
            if not len(open_rows):
                break
        return best


def _checkpoints(steps: int) -> set[int]:
    """Steps after which progress is judged (section 3.1 of the paper)."""
    places, width = [0.0, 0.22], 0.22
    while places[-1] < 1.0:
        width = max(width - 0.03, 0.06)
        places.append(places[-1] + width)
    return {math.ceil(place * steps) for place in places[1:]}


def _evaluate(
    model: Model, point: Tensor, label: Tensor, loss: Loss
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss [N], its gradient, and which rows are misclassified [N]."""
    point = point.detach().requires_grad_(True)
    logits = model(point)
    value = loss(logits, label)
    (gradient,) = torch.autograd.grad(value.sum(), point)
    return value.detach(), gradient, logits.detach().argmax(dim=1) != label
