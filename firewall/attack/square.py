"""Square attack: random search with squares, no gradient at all (Andriushchenko et al. 2020,
arXiv:1912.00049). What it breaks and a gradient does not is a sign of a masked gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from firewall.attack.losses import margin
from firewall.attack.oracle import Oracle

#: Shares of the budget (of 10,000 in the paper) after which the share of changed pixels halves.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True)
class Square:
    """Settings of the attack, in the L-infinity ball.

    Attributes:
        radius: of the ball, in units of the image batch.
        queries: of each row at most; the oracle's budget may end it sooner.
        first_share: of the pixels that the first squares change.

    """

    radius: float
    queries: int = 1000
    first_share: float = 0.8

    def __call__(self, oracle: Oracle, x: Tensor, label: Tensor, *, seed: int = 0) -> Tensor:
        """Attack a batch, away from its labels.

        Args:
            oracle: answers scores; made for these rows.
            x: [N, C, H, W] in [0, 1].
            label: [N] int64, the classes to leave.
            seed: of the search.

        Returns:
            [N, C, H, W] in [0, 1], within the radius: of each row the best point that was
            answered, x where none was.

        """
        generator = torch.Generator().manual_seed(seed)
        count, channels, height, width = x.shape
        stripes = _signs((count, channels, 1, width), generator).expand_as(x)
        point = (x + self.radius * stripes).clamp(0.0, 1.0)
        best = x.clone()
        value = torch.full((count,), -torch.inf)
        for number in range(self.queries):
            rows = (oracle.may_ask() & (value <= 0)).nonzero()[:, 0]
            if not len(rows):
                break
            if number:
                point = best.clone()
                side = _side(self._share(number), height, width)
                _paint(point, x, rows, side, self.radius, generator)
            replies = oracle.ask(point[rows], rows)
            found = margin(replies.scores, label[rows])
            # A refused row has told nothing, and is not where anyone wants to be.
            found = torch.where(replies.refused, torch.full_like(found, -torch.inf), found)
            better = found > value[rows]
            best[rows[better]] = point[rows[better]]
            value[rows[better]] = found[better]
        return best

    def _share(self, number: int) -> float:
        reached = sum(number > halving * self.queries / 10_000 for halving in _HALVINGS)
        return self.first_share / 2.0**reached


def _side(share: float, height: int, width: int) -> int:
    return max(1, min(round(math.sqrt(share * height * width)), height - 1, width - 1))


def _signs(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator).float() * 2 - 1


def _paint(
    point: Tensor, x: Tensor, rows: Tensor, side: int, radius: float, generator: Generator
) -> None:
    """In each of the rows, one square moves to the edge of the ball, each channel its own way."""
    height, width = x.shape[2:]
    tops = torch.randint(0, height - side + 1, (len(rows),), generator=generator)
    lefts = torch.randint(0, width - side + 1, (len(rows),), generator=generator)
    signs = _signs((len(rows), x.shape[1], 1, 1), generator)
    for number, row in enumerate(rows.tolist()):
        top, left = int(tops[number]), int(lefts[number])
        window = (row, slice(None), slice(top, top + side), slice(left, left + side))
        point[window] = (x[window] + radius * signs[number]).clamp(0.0, 1.0)
