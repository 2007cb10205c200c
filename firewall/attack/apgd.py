"""Auto-PGD: no step size to choose (Croce, Hein 2020, arXiv:2003.01690).

Momentum steps of twice the radius, halved at checkpoints where the loss stalls, each time going
back to the best point. With DLR it sees through logits that are scaled to mask the gradient. A row
that is broken leaves the batch: what stands is what costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from firewall.attack.gradient import Model
from firewall.attack.losses import Loss, aimed_dlr, cross_entropy
from firewall.attack.norms import Linf, Norm

#: Momentum and the least share of steps between checkpoints that must raise the loss (section 3).
_ALPHA, _RHO = 0.75, 0.75

#: Logits [M, K] of rows (indices [M] into the batch) to what is raised, [M].
_Goal = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AutoPGD:
    """Settings of one attack.

    Attributes:
        radius: of the ball, in units of the image batch.
        steps: forward and backward passes of one run.
        norm: the ball.
        loss: `cross_entropy` or `dlr`.
        restarts: runs from other random starts, on rows that still stand.
        stops: whether a row is done once it is broken. AutoAttack's goes on to the end, which gives
            louder forgeries: of a row that the random start breaks, this one gives plain noise.

    """

    radius: float
    steps: int = 100
    norm: Norm = field(default_factory=Linf)
    loss: Loss = cross_entropy
    restarts: int = 1
    stops: bool = True

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
        goals: list[_Goal] = [lambda logits, rows: self.loss(logits, label[rows])] * self.restarts
        return _runs(model, x, label, goals, self.radius, self.steps, self.norm, seed, self.stops)


@dataclass(frozen=True)
class TargetedAutoPGD:
    """APGD with targeted DLR, once for each of the likeliest wrong classes.

    Attributes:
        radius: of the ball.
        steps: of each run.
        norm: the ball.
        targets: how many classes, the likeliest first (9 in AutoAttack).
        stops: as of `AutoPGD`.

    """

    radius: float
    steps: int = 100
    norm: Norm = field(default_factory=Linf)
    targets: int = 9
    stops: bool = True

    def __call__(self, model: Model, x: Tensor, label: Tensor, *, seed: int = 0) -> Tensor:
        """As `AutoPGD`."""
        with torch.no_grad():
            logits = model(x)
        others = logits.scatter(1, label[:, None], -torch.inf).argsort(dim=1, descending=True)

        def towards(target: Tensor) -> _Goal:
            return lambda logits, rows: aimed_dlr(target[rows])(logits, label[rows])

        count = min(self.targets, logits.shape[1] - 1)
        goals = [towards(others[:, rank]) for rank in range(count)]
        return _runs(model, x, label, goals, self.radius, self.steps, self.norm, seed, self.stops)


@dataclass
class _Standing:
    """Rows that are not broken yet, and where each of them is. All tensors are [M, ...]."""

    rows: Tensor
    x: Tensor
    point: Tensor
    previous: Tensor
    value: Tensor
    gradient: Tensor
    best: Tensor
    best_value: Tensor
    best_gradient: Tensor
    step: Tensor
    last_step: Tensor
    last_best: Tensor
    raised: Tensor

    def keep(self, going: Tensor) -> None:
        """Forget the other rows."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name)[going])


def _runs(
    model: Model,
    x: Tensor,
    label: Tensor,
    goals: list[_Goal],
    radius: float,
    steps: int,
    norm: Norm,
    seed: int,
    stops: bool,
) -> Tensor:
    """One run for each goal, on the rows that the runs before have not broken."""
    generator = torch.Generator().manual_seed(seed)
    result = x.clone()
    rows = torch.arange(len(x), device=x.device)
    for goal in goals:
        broken = _run(model, x, label, rows, goal, radius, steps, norm, generator, result, stops)
        rows = rows[~broken[rows]]
        if not len(rows):
            break
    return result


def _run(
    model: Model,
    x: Tensor,
    label: Tensor,
    rows: Tensor,
    goal: _Goal,
    radius: float,
    steps: int,
    norm: Norm,
    generator: torch.Generator,
    result: Tensor,
    stops: bool,
) -> Tensor:
    """Work on some rows, write what was found into `result`, and say what is broken: [N]."""

    def inside(clean: Tensor, point: Tensor) -> Tensor:
        return (clean + norm.project(point - clean, radius)).clamp(0.0, 1.0)

    def look(point: Tensor, where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value [M], its gradient, and which rows are misclassified [M]."""
        point = point.detach().requires_grad_(True)
        logits = model(point)
        value = goal(logits, where)
        (gradient,) = torch.autograd.grad(value.sum(), point)
        return value.detach(), gradient, logits.detach().argmax(dim=1) != label[where]

    broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def leave(wrong: Tensor) -> None:
        """Keep what breaks a row; with `stops` that row is done."""
        if bool(wrong.any()):
            result[now.rows[wrong]] = now.point[wrong]
            broken[now.rows[wrong]] = True
            if stops:
                now.keep(~wrong)

    checkpoints = _checkpoints(steps)
    clean = x[rows]
    point = inside(clean, clean + norm.start(clean, radius, generator))
    value, gradient, wrong = look(point, rows)
    step = torch.full((len(rows),), 2.0 * radius, device=x.device)
    now = _Standing(
        rows=rows, x=clean, point=point, previous=point, value=value, gradient=gradient,
        best=point, best_value=value, best_gradient=gradient,
        step=step, last_step=step, last_best=value, raised=torch.zeros_like(value),
    )  # fmt: skip
    leave(wrong)
    since = 0
    for number in range(1, steps):
        if not len(now.rows):
            break
        ahead = inside(now.x, now.point + _wide(now.step) * norm.direction(now.gradient))
        alpha = 1.0 if number == 1 else _ALPHA
        moved = now.point + alpha * (ahead - now.point) + (1 - alpha) * (now.point - now.previous)
        before = now.value
        now.previous, now.point = now.point, inside(now.x, moved)
        now.value, now.gradient, wrong = look(now.point, now.rows)
        now.raised = now.raised + (now.value > before).float()
        leave(wrong)
        better = now.value > now.best_value
        now.best = torch.where(_wide(better), now.point, now.best)
        now.best_gradient = torch.where(_wide(better), now.gradient, now.best_gradient)
        now.best_value = torch.where(better, now.value, now.best_value)
        since += 1
        if number in checkpoints:
            stuck = (now.step == now.last_step) & (now.best_value <= now.last_best)
            halve = (now.raised < _RHO * since) | stuck
            now.last_step, now.last_best = now.step, now.best_value
            now.step = torch.where(halve, now.step / 2.0, now.step)
            now.value = torch.where(halve, now.best_value, now.value)
            now.point = torch.where(_wide(halve), now.best, now.point)
            now.previous = torch.where(_wide(halve), now.best, now.previous)
            now.gradient = torch.where(_wide(halve), now.best_gradient, now.gradient)
            now.raised = torch.zeros_like(now.raised)
            since = 0
    stand = ~broken[now.rows]
    result[now.rows[stand]] = now.best[stand]
    return broken


def _wide(rows: Tensor) -> Tensor:
    return rows.view(-1, 1, 1, 1)


def _checkpoints(steps: int) -> set[int]:
    """Steps after which progress is judged (section 3.1 of the paper)."""
    places, width = [0.0, 0.22], 0.22
    while places[-1] < 1.0:
        width = max(width - 0.03, 0.06)
        places.append(places[-1] + width)
    return {math.ceil(place * steps) for place in places[1:]}
