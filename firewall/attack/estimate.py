"""Black-box attacks that estimate a gradient from scores.

Natural evolution strategies (Ilyas et al. 2018, arXiv:1804.08598) and SPSA (Uesato et al. 2018,
arXiv:1802.05666) ask in random directions, ZOO (Chen et al. 2017, arXiv:1708.03999) one coordinate
at a time; each question is asked on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Generator, Tensor

from firewall.attack.losses import margin
from firewall.attack.norms import Linf, Norm
from firewall.attack.oracle import Oracle

#: How directions are drawn: Gaussian (NES), signs (SPSA) or single coordinates (ZOO).
Directions = Literal["gaussian", "signs", "coordinates"]


@dataclass(frozen=True)
class EstimatedGradient:
    """Settings of the attack.

    Attributes:
        radius: of the ball, in units of the image batch.
        steps: of ascent.
        pairs: of questions for each step.
        spread: distance of the two questions of a pair from the point.
        directions: in which questions are asked.
        norm: the ball.

    """

    radius: float
    steps: int = 20
    pairs: int = 25
    spread: float = 0.01
    directions: Directions = "gaussian"
    norm: Norm = field(default_factory=Linf)

    def __call__(self, oracle: Oracle, x: Tensor, label: Tensor, *, seed: int = 0) -> Tensor:
        """Attack a batch, away from its labels; arguments and result as `square.Square`."""
        generator = torch.Generator().manual_seed(seed)
        point, best = x.clone(), x.clone()
        value = torch.full((len(x),), -torch.inf)
        step = 2.5 * self.radius / self.steps
        for _ in range(self.steps):
            rows = (oracle.may_ask(2 * self.pairs + 1) & (value <= 0)).nonzero()[:, 0]
            if not len(rows):
                break
            gradient = torch.zeros_like(x[rows])
            for _ in range(self.pairs):
                # A service that blocks may have done so in the middle of a step.
                asking = oracle.may_ask(2)[rows]
                if not bool(asking.any()):
                    break
                some = rows[asking]
                along = self._draw(x[some], generator)
                up = self._ask(oracle, point[some] + self.spread * along, label[some], some)
                still = oracle.may_ask()[some]
                down = torch.full_like(up, torch.nan)
                if bool(still.any()):
                    down[still] = self._ask(
                        oracle,
                        point[some[still]] - self.spread * along[still],
                        label[some[still]],
                        some[still],
                    )
                # Where either side was refused nothing was learnt.
                slope = torch.nan_to_num((up - down) / (2 * self.spread), nan=0.0)
                gradient[asking] += slope.view(-1, 1, 1, 1) * along
            moved = point[rows] + step * self.norm.direction(gradient) - x[rows]
            point[rows] = (x[rows] + self.norm.project(moved, self.radius)).clamp(0.0, 1.0)
            rows = rows[oracle.may_ask()[rows]]
            if not len(rows):
                break
            found = self._ask(oracle, point[rows], label[rows], rows)
            better = found > value[rows]
            best[rows[better]] = point[rows[better]]
            value[rows[better]] = found[better]
        return best

    def _draw(self, x: Tensor, generator: Generator) -> Tensor:
        if self.directions == "gaussian":
            return torch.randn(x.shape, generator=generator)
        if self.directions == "signs":
            return torch.randint(0, 2, x.shape, generator=generator).float() * 2 - 1
        along = torch.zeros_like(x).flatten(1)
        place = torch.randint(0, along.shape[1], (len(x), 1), generator=generator)
        return along.scatter(1, place, 1.0).view_as(x)

    def _ask(self, oracle: Oracle, point: Tensor, label: Tensor, rows: Tensor) -> Tensor:
        """Margins [M]; NaN where the question was refused."""
        replies = oracle.ask(point.clamp(0.0, 1.0), rows)
        found = margin(replies.scores, label)
        return torch.where(replies.refused, torch.full_like(found, torch.nan), found)
