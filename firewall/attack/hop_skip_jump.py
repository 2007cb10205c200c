"""HopSkipJump: from labels alone (Chen, Jordan, Wainwright 2020, arXiv:1904.02144).

Starts from any image that is answered wrongly, walks along the decision boundary towards the
original. A refused question is not a wrong answer: who is refused has not got through.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from firewall.attack.norms import L2, Norm
from firewall.attack.oracle import Oracle

#: Random images that are tried where no start is given.
_TRIES = 10
#: Distance along the line to the original at which a bisection ends.
_FINE = 1e-3


@dataclass(frozen=True)
class HopSkipJump:
    """Settings of the attack.

    Attributes:
        radius: within which a result counts as found, and the walk ends.
        iterations: at most; the oracle's budget usually ends it sooner.
        first_questions: for the first estimate of the boundary's direction; grows as a root.
        norm: by which nearness is measured.

    """

    radius: float
    iterations: int = 64
    first_questions: int = 30
    norm: Norm = field(default_factory=L2)

    def __call__(
        self,
        oracle: Oracle,
        x: Tensor,
        label: Tensor,
        *,
        start: Tensor | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Attack a batch, away from its labels; each row walks alone.

        Args:
            oracle: answers; of its scores only the top class is looked at.
            x: [N, C, H, W] in [0, 1].
            label: [N] int64, the classes to leave.
            start: [N, C, H, W], images of other classes; random ones when None.
            seed: of the questions.

        Returns:
            [N, C, H, W] in [0, 1]: of each row the nearest image that was answered wrongly, or x
            where none was. It may lie outside the radius.

        """
        result = x.clone()
        for row in range(len(x)):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + row)
            walk = _Walk(self, oracle, x[row], int(label[row]), row, generator)
            result[row] = walk.walk(None if start is None else start[row])
        return result


class _Walk:
    """One row's way."""

    def __init__(
        self,
        settings: HopSkipJump,
        oracle: Oracle,
        x: Tensor,
        label: int,
        row: int,
        generator: Generator,
    ) -> None:
        self._settings = settings
        self._oracle = oracle
        self._x = x
        self._label = label
        self._row = row
        self._generator = generator

    def walk(self, start: Tensor | None) -> Tensor:
        """To the nearest wrongly answered image, or x."""
        norm, radius = self._settings.norm, self._settings.radius
        begun = self._begin(start)
        if begun is None:
            return self._x
        near = self._towards(begun)
        for number in range(1, self._settings.iterations + 1):
            distance = float(norm.size((near - self._x)[None])[0])
            if distance <= radius or not self._may_ask():
                break
            questions = int(self._settings.first_questions * math.sqrt(number))
            direction = self._direction(near, questions, distance)
            step = distance / math.sqrt(number)
            while step > distance * 1e-3 and self._may_ask():
                ahead = (near + step * direction).clamp(0.0, 1.0)
                if self._wrong(ahead[None])[0]:
                    moved = self._towards(ahead)
                    if float(norm.size((moved - self._x)[None])[0]) < distance:
                        near = moved
                    break
                step /= 2
        return near

    def _may_ask(self) -> bool:
        return bool(self._oracle.may_ask()[self._row])

    def _wrong(self, points: Tensor) -> Tensor:
        """Which of [M, C, H, W] are answered, and wrongly: [M] bool; False beyond the budget."""
        replies = self._oracle.ask_in_turn(points.clamp(0.0, 1.0), self._row)
        said = torch.zeros(len(points), dtype=torch.bool)
        wrong = replies.scores.argmax(dim=1) != self._label
        said[: len(wrong)] = wrong & ~replies.refused
        return said

    def _begin(self, start: Tensor | None) -> Tensor | None:
        """An image that is answered wrongly."""
        tries = [start] if start is not None else []
        for _ in range(_TRIES):
            noise = torch.rand(self._x.shape, generator=self._generator)
            # Half-way too: pure noise is what a guard refuses first.
            tries += [noise, 0.5 * (self._x + noise)]
        for one in tries:
            if not self._may_ask():
                return None
            if self._wrong(one[None])[0]:
                return one
        return None

    def _towards(self, point: Tensor) -> Tensor:
        """Along the line to x, the last place that is still answered wrongly."""
        low, high = 0.0, 1.0
        while high - low > _FINE and self._may_ask():
            middle = (low + high) / 2
            if self._wrong((self._x + middle * (point - self._x))[None])[0]:
                high = middle
            else:
                low = middle
        return self._x + high * (point - self._x)

    def _direction(self, near: Tensor, questions: int, distance: float) -> Tensor:
        """Away from the boundary, from questions around a place on it (section III.B)."""
        values = near.numel()
        noise = torch.randn(questions, *near.shape, generator=self._generator)
        noise = noise / _length(noise)
        # Each value moves far enough to survive being sent with eight bits.
        reach = distance * math.sqrt(values) if self._settings.norm.name == "linf" else distance
        spread = 0.1 * max(reach, 0.01 * math.sqrt(values))
        asked = (near + spread * noise).clamp(0.0, 1.0)
        noise = (asked - near) / spread
        said = self._wrong(asked).float() * 2 - 1
        # Less the mean: a guess from few questions is steadier (equation 16).
        weight = said - said.mean() if bool((said != said[0]).any()) else said
        mean = (weight.view(-1, 1, 1, 1) * noise).mean(dim=0)
        return self._settings.norm.direction(mean[None])[0]


def _length(noise: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(noise.flatten(1), dim=1)
    return size.clamp_min(1e-12).view(-1, 1, 1, 1)
