"""What is attacked and judged: a bare classifier, or one behind a guard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from firewall.attack.gradient import Model
from firewall.attack.oracle import Replies
from firewall.attack.served_guard import ServedGuard
from firewall.screening.calibration import Calibration, Cascade
from firewall.screening.live import LiveGuard
from firewall.screening.verdict import Verdict

#: The score of a row that is refused because a stage failed on it: over every other.
FAULTED = 1e9


@dataclass(frozen=True)
class Judged:
    """What became of N rows.

    Attributes:
        accepted: [N] bool.
        answered: [N] int64, the class that an accepted row is answered.
        bare: [N] int64, the class that the classifier alone would answer.
        averaged: [N] int64, the class that the ensemble would answer.
        scores: [N], higher is more suspicious.
        p_values: [N], conformal.
        statistics: [N, D] of every detector, the cheap ones first.

    """

    accepted: npt.NDArray[np.bool_]
    answered: npt.NDArray[np.int64]
    bare: npt.NDArray[np.int64]
    averaged: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    p_values: npt.NDArray[np.float64]
    statistics: npt.NDArray[np.float64]


@dataclass(frozen=True)
class GuardParts:
    """What the adaptive attacker works on: the guard's own graphs and its decision rule."""

    served: ServedGuard
    calibration: Calibration
    cascade: Cascade


class Victim(Protocol):
    """Anything with a classifier in it, on image batches [N, C, H, W] in [0, 1]."""

    @property
    def guard(self) -> GuardParts | None:
        """None for a bare classifier."""

    @property
    def differentiable(self) -> bool:
        """Whether `logits` has gradients."""

    def logits(self, x: Tensor) -> Tensor:
        """The classifier alone, or its stand-in: [N, K], with gradients where there are any."""

    def replies(self, x: Tensor) -> Replies:
        """What a client sees."""

    def judge(self, x: Tensor) -> Judged:
        """What a server does."""

    def representable(self, x: Tensor, around: Tensor) -> Tensor:
        """Images that can be sent, each value between `x` and the clean image `around`."""

    def leads(self, x: Tensor, radius: float) -> npt.NDArray[np.float32] | None:
        """[N]: least lead of the classifier's class within an L-infinity radius.

        Positive certifies the class. None where the classifier cannot be bounded.
        """


class BareVictim:
    """A classifier that nobody guards. Everything is accepted."""

    guard: GuardParts | None = None
    differentiable = True

    def __init__(self, model: Model) -> None:
        self._model = model

    def logits(self, x: Tensor) -> Tensor:
        """[N, K]."""
        return self._model(x)

    def replies(self, x: Tensor) -> Replies:
        """Log-probabilities of every row."""
        with torch.no_grad():
            return Replies.of(torch.log_softmax(self._model(x), dim=1))

    def judge(self, x: Tensor) -> Judged:
        """The top class of every row."""
        rows = len(x)
        with torch.no_grad():
            said = self._model(x).argmax(dim=1).numpy()
        return Judged(
            accepted=np.ones(rows, np.bool_),
            answered=said,
            bare=said,
            averaged=said,
            scores=np.zeros(rows),
            p_values=np.ones(rows),
            statistics=np.empty((rows, 0)),
        )

    def representable(self, x: Tensor, around: Tensor) -> Tensor:
        """Every float can be."""
        return x

    def leads(self, x: Tensor, radius: float) -> None:
        """Nothing is known of its layers."""
        return None


class ServedVictim:
    """A guard around a classifier of which the attacker has nothing but answers."""

    guard: GuardParts | None = None
    differentiable = False

    def __init__(
        self,
        live: LiveGuard,
        to_wire: Callable[[Tensor], npt.NDArray[np.generic]],
        *,
        eight_bit: bool = False,
    ) -> None:
        """Bind the guard as it decides.

        Args:
            live: the guard.
            to_wire: image batch to what a client sends.
            eight_bit: whether that is whole numbers from 0 to 255.

        """
        self._live = live
        self._to_wire = to_wire
        self._eight_bit = eight_bit

    def logits(self, x: Tensor) -> Tensor:
        """The classifier's answers as logits [N, K], without gradients."""
        # A copy: what came over a network cannot be written to.
        return torch.tensor(self._live.compiled.cheap(self._to_wire(x.detach())).logits)

    def replies(self, x: Tensor) -> Replies:
        """Log-probabilities, and who was refused."""
        wire = self._to_wire(x)
        answer = self._live.screen(wire, [self._live.plan("")] * len(wire))
        refused = [one.verdict is Verdict.REJECT for one in answer.decisions]
        return Replies(torch.from_numpy(answer.log_probabilities), torch.tensor(refused))

    def judge(self, x: Tensor) -> Judged:
        """Verdicts of the live guard, and every statistic."""
        wire = self._to_wire(x)
        answer = self._live.screen(wire, [self._live.plan("")] * len(wire))
        compiled = self._live.compiled
        averaged, statistics = compiled.both(wire)
        return Judged(
            accepted=np.array([one.verdict is not Verdict.REJECT for one in answer.decisions]),
            answered=answer.classes,
            bare=compiled.cheap(wire).logits.argmax(axis=1),
            averaged=averaged.argmax(axis=1),
            scores=np.array([FAULTED if d.score is None else d.score for d in answer.decisions]),
            p_values=np.array([0.0 if d.p_value is None else d.p_value for d in answer.decisions]),
            statistics=statistics.astype(np.float64),
        )

    def representable(self, x: Tensor, around: Tensor) -> Tensor:
        """Where eight bits are sent, rounded towards the clean image: rounded to the nearest, what
        is within a radius would be beyond it.
        """
        if not self._eight_bit:
            return x
        clean = torch.round(255 * around)
        # A hair more, so that what is whole but for rounding stays what it is.
        moved = torch.trunc((255 * x - clean) * (1 + 1e-5))
        return (clean + moved) / 255

    def leads(self, x: Tensor, radius: float) -> npt.NDArray[np.float32] | None:
        """As the server certifies."""
        if not self._live.compiled.certifies:
            return None
        return self._live.compiled.certify(self._to_wire(x), np.full(len(x), radius, np.float32))[1]


class GuardedVictim:
    """A bundle's guard: attacked through its graphs, judged by the code that serves it."""

    differentiable = True

    def __init__(
        self,
        served: ServedGuard,
        live: LiveGuard,
        cascade: Cascade,
        to_wire: Callable[[Tensor], npt.NDArray[np.generic]],
        *,
        eight_bit: bool = False,
    ) -> None:
        """Bind the parts of one guard.

        Args:
            served: differentiable, as served; or around a stand-in for its classifier.
            live: the same, deciding.
            cascade: the decision rule that `live` uses.
            to_wire: image batch to what a client sends.
            eight_bit: whether that is whole numbers from 0 to 255.

        """
        self._answers = ServedVictim(live, to_wire, eight_bit=eight_bit)
        self.guard: GuardParts | None = GuardParts(served, live.calibration, cascade)
        self._served = served

    def logits(self, x: Tensor) -> Tensor:
        """Of the classifier inside, or of its stand-in, [N, K]."""
        return self._served.classify(x)

    def replies(self, x: Tensor) -> Replies:
        """As `ServedVictim`."""
        return self._answers.replies(x)

    def judge(self, x: Tensor) -> Judged:
        """As `ServedVictim`."""
        return self._answers.judge(x)

    def representable(self, x: Tensor, around: Tensor) -> Tensor:
        """As `ServedVictim`."""
        return self._answers.representable(x, around)

    def leads(self, x: Tensor, radius: float) -> npt.NDArray[np.float32] | None:
        """As `ServedVictim`."""
        return self._answers.leads(x, radius)
