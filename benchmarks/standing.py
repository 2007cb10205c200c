"""Which images stand under attacks of AutoAttack's kind, on a bare classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from firewall.attack.apgd import AutoPGD, TargetedAutoPGD
from firewall.attack.oracle import Oracle, Replies
from firewall.attack.square import Square

Model = Callable[[Tensor], Tensor]
Rows = npt.NDArray[np.bool_]


def standing(
    model: Model,
    x: Tensor,
    y: Tensor,
    radius: float,
    *,
    steps: int = 40,
    targeted: int = 20,
    queries: int = 500,
) -> Rows:
    """[N]: rows that are right, and that APGD with cross-entropy, targeted APGD and Square all
    leave right. Each attack has the rows that those before it have left.
    """

    def replies(points: Tensor) -> Replies:
        return Replies.of(torch.log_softmax(model(points), dim=1))

    attacks: tuple[Callable[[Tensor, Tensor], Any], ...] = (
        lambda a, b: AutoPGD(radius, steps)(model, a, b),
        lambda a, b: TargetedAutoPGD(radius, targeted)(model, a, b),
        lambda a, b: Square(radius, queries)(Oracle(replies, len(a), queries), a, b, seed=0),
    )
    with torch.no_grad():
        left = model(x).argmax(dim=1) == y
    for attack in attacks:
        rows = torch.nonzero(left)[:, 0]
        if not len(rows):
            break
        found = attack(x[rows], y[rows])
        with torch.no_grad():
            left[rows] = model(found).argmax(dim=1) == y[rows]
    stood: Rows = left.numpy()
    return stood
