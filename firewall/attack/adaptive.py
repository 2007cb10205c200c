"""The attacker who knows the guard: fool the classifier and evade every statistic, at once.

One objective over the graphs that are served (Carlini, Wagner 2017, arXiv:1705.07263; Tramèr et al.
2020, arXiv:2002.08347): a margin to be gained, and how far the statistics are over what the guard
lets pass: a hinge on each, or on their learnt combination. Two ways to combine them:

- `weighted`: their sum, with a weight for each row that grows while the row is caught and shrinks
  while it does not fool;
- `orthogonal`: one of them at a time, along the part of its gradient that leaves the other alone
  (Bryniarski et al. 2021, arXiv:2106.15023).

Tiers count. The way through the cheap tier needs the cheap statistics only: a row that stays there
has evaded. The way through both tiers has to fool the ensemble and keep every statistic down.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from firewall.attack.losses import margin
from firewall.attack.norms import Linf, Norm
from firewall.attack.served_guard import ServedGuard
from firewall.screening.calibration import Cascade
from firewall.screening.row_rule import Column

Way = Literal["cheap", "both"]
Combination = Literal["weighted", "orthogonal"]
#: Knots of a calibrated score as an attacker follows it.
_KNOTS = 33


class Excess(Protocol):
    """By how much rows are over what passes, [N], 0 or more, with gradients."""

    def __call__(self, statistics: Tensor, place: Tensor) -> Tensor:
        """Compute it.

        Args:
            statistics: [N, D'] on the way.
            place: [N] of the class that each row is to be taken for, among those with a promise of
                their own; all 0 where there is one promise.

        """


@dataclass(frozen=True)
class Hinges:
    """A hinge on each statistic: sharing what passes equally among them is sufficient to pass.

    Attributes:
        ceilings: [K', D'] up to where each statistic may go, by class.
        scales: [D'] by which excesses are made comparable.

    """

    ceilings: Tensor
    scales: Tensor

    def __call__(self, statistics: Tensor, place: Tensor) -> Tensor:
        """Sum the hinges."""
        return torch.relu((statistics - self.ceilings[place]) / self.scales).sum(dim=1)


@dataclass(frozen=True)
class Combined:
    """A hinge on the learnt combination itself: what one statistic spares, another may use.

    Attributes:
        lines: by statistic, its place, and values and weighted scores [J] at knots, with the slope
            that goes on from the last.
        ceilings: [K'] of the combination, by class.

    """

    lines: tuple[tuple[int, Tensor, Tensor, float], ...]
    ceilings: Tensor

    def __call__(self, statistics: Tensor, place: Tensor) -> Tensor:
        """Sum the calibrated scores, between knots along straight lines."""
        total = torch.zeros(len(statistics))
        for column, values, scores, slope in self.lines:
            x = statistics[:, column]
            right = torch.searchsorted(values, x.detach().contiguous()).clamp(1, len(values) - 1)
            low, high = values[right - 1], values[right]
            # Below the least value there is nothing to gain.
            share = ((x - low) / (high - low).clamp_min(1e-9)).clamp_min(0.0)
            inner = scores[right - 1] + share * (scores[right] - scores[right - 1])
            total = total + torch.where(
                x > values[-1], scores[-1] + slope * (x - values[-1]), inner
            )
        return torch.relu(total - self.ceilings[place])


@dataclass(frozen=True)
class Evasion:
    """What passes on one way through the guard.

    Attributes:
        way: which tiers are passed.
        excess: of rows on that way.
        classes: how many classes have a promise of their own; the last stands for those beyond.

    """

    way: Way
    excess: Excess
    classes: int = 1

    @classmethod
    def of(cls, guard: ServedGuard, cascade: Cascade, way: Way) -> Evasion:
        """What makes the guard accept: a combination below its threshold."""
        calibration = guard.calibration
        totals = cascade.doubt_ceilings if way == "cheap" else cascade.score_ceilings
        # A little below: a p-value on the threshold is caught.
        totals = 0.95 * totals
        if calibration.combination == "learnt":
            columns = cascade.columns("cheap" if way == "cheap" else "every")
            ceilings = torch.tensor(totals, dtype=torch.float32)
            return cls(way, Combined(tuple(_line(one) for one in columns), ceilings), len(totals))
        part = calibration.part_a
        if way == "cheap":
            count, width = calibration.cheap, calibration.cheap
        else:
            count, width = len(cascade.names), part.shape[1]
        least_p = cascade.equal_p(totals, count)
        quantiles = np.quantile(part[:, :width], 1.0 - np.minimum(1.0, least_p), axis=0)
        scales = np.maximum(part[:, :width].std(axis=0), 1e-6)
        hinges = Hinges(
            torch.tensor(quantiles, dtype=torch.float32), torch.tensor(scales, dtype=torch.float32)
        )
        return cls(way, hinges, len(totals))


def _line(column: Column) -> tuple[int, Tensor, Tensor, float]:
    """A column's score as straight lines between knots, which has a gradient everywhere."""
    body = [value for value in column.reference if value <= column.cut]
    at = sorted({body[round(share * (len(body) - 1))] for share in np.linspace(0, 1, _KNOTS)})
    # A value just above a knot has the knot itself below it.
    values = torch.tensor([at[0] - 1.0, *at] if len(at) == 1 else at)
    scores = torch.tensor([column.score(float(value)) for value in values])
    return column.place, values, scores, column.weight * column.slope


@dataclass(frozen=True)
class Adaptive:
    """Settings of the attack.

    Attributes:
        radius: of the ball, in units of the image batch.
        steps: of one run; the length of a step falls from `radius / 4` to `radius / 40`.
        norm: the ball.
        combination: of margin and hinges.
        confidence: margin to be gained, in logits, before only evasion counts.

    """

    radius: float
    steps: int = 100
    norm: Norm = field(default_factory=Linf)
    combination: Combination = "weighted"
    confidence: float = 0.5

    def __call__(
        self,
        guard: ServedGuard,
        x: Tensor,
        label: Tensor,
        evasion: Evasion,
        *,
        start: Tensor | None = None,
    ) -> Tensor:
        """Attack a batch, away from its labels.

        Args:
            guard: what is served.
            x: [N, C, H, W] in [0, 1].
            label: [N] int64, the classes to leave.
            evasion: the way, and what passes there.
            start: [N, C, H, W] within the radius, such as another attack's result; x when None.

        Returns:
            [N, C, H, W] in [0, 1], within the radius: of each row the point that fools with the
            least excess, else the one with the largest margin.

        """
        delta = torch.zeros_like(x) if start is None else start - x
        weight = torch.ones(len(x))
        result = x.clone()
        # Lower is better: excess where the row fools, else 1e3 less what is gained of the margin.
        best_value = torch.full((len(x),), torch.inf)
        past = torch.zeros_like(x)
        rows = torch.arange(len(x))
        for number in range(self.steps + 1):
            delta = delta.detach().requires_grad_(True)
            gained, excess = self._objective(guard, x + delta, label, evasion)
            fools = gained.detach() > 0
            value = torch.where(fools, excess.detach(), 1e3 - gained.detach())
            better = value < best_value[rows]
            result[rows[better]] = (x + delta.detach())[better]
            best_value[rows[better]] = value[better]
            if number == self.steps:
                break
            direction = self._direction(delta, gained, excess, weight)
            going = value > 0
            if not bool(going.all()):
                # What is through is done: the rest goes on without it, in a smaller batch.
                x, label, rows, weight = x[going], label[going], rows[going], weight[going]
                delta, past, direction = delta.detach()[going], past[going], direction[going]
                excess, fools = excess.detach()[going], fools[going]
                if not len(rows):
                    break
            past = 0.75 * past + direction
            progress = number / self.steps
            step = self.radius * (0.25 * (1 - progress) + 0.025 * progress)
            moved = delta.detach() + step * self.norm.direction(past)
            inside = (x + self.norm.project(moved, self.radius)).clamp(0.0, 1.0)
            delta = inside - x
            caught = excess.detach() > 0
            weight = torch.where(caught & fools, weight * 1.1, weight)
            weight = torch.where(~fools, weight * 0.9, weight).clamp(1e-2, 1e3)
        return result

    def _objective(
        self, guard: ServedGuard, point: Tensor, label: Tensor, evasion: Evasion
    ) -> tuple[Tensor, Tensor]:
        """Margin [N], and the sum of hinges over all statistics on the way [N]."""
        if evasion.way == "cheap":
            logits, statistics, _ = guard.cheap(point)
        else:
            seen = guard(point)
            logits, statistics = seen.log_probabilities, seen.statistics
        place = torch.zeros(len(label), dtype=torch.int64)
        if evasion.classes > 1:
            # What passes depends on the class that it is to be taken for.
            theirs = logits.detach().clone()
            theirs[torch.arange(len(label)), label] = -torch.inf
            place = theirs.argmax(dim=1).clamp_max(evasion.classes - 1)
        return margin(logits, label), evasion.excess(statistics, place)

    def _direction(self, delta: Tensor, gained: Tensor, excess: Tensor, weight: Tensor) -> Tensor:
        capped = gained.clamp_max(self.confidence)
        if self.combination == "weighted":
            total = (capped - weight * excess).sum()
            (gradient,) = torch.autograd.grad(total, delta)
            return _unit(gradient)
        (to_fool,) = torch.autograd.grad(gained.sum(), delta, retain_graph=True)
        (to_evade,) = torch.autograd.grad(-excess.sum(), delta)
        to_fool, to_evade = _unit(to_fool), _unit(to_evade)
        fools = (gained.detach() > self.confidence).view(-1, 1, 1, 1)
        return torch.where(fools, _without(to_evade, to_fool), _without(to_fool, to_evade))


def _unit(gradient: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp_min(1e-12)
    return gradient / size.view(-1, 1, 1, 1)


def _without(along: Tensor, other: Tensor) -> Tensor:
    """`along` less its component along the unit vector `other`, row by row."""
    component = (along * other).flatten(1).sum(dim=1).view(-1, 1, 1, 1)
    rest: Tensor = along - component * other
    return rest
