"""What an attacker raises. Each maps logits [N, K] and labels [N] to [N]; higher is nearer success.

A loss is for leaving `label`; the aimed ones are for reaching it.

The difference of logits ratio divides by a gap between ranked logits. With too few classes the
numerator is that gap, the ratio is a constant, and an attack on it has no gradient: below
`DLR_CLASSES` (and `AIMED_DLR_CLASSES`) the margin alone is raised. Steps of the attacks are
normalised, so nothing is lost by its scale.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]

#: Fewest classes for which the difference of logits ratio has a gradient, and its targeted form.
DLR_CLASSES, AIMED_DLR_CLASSES = 3, 4


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """-log p(label)."""
    return F.cross_entropy(logits, label, reduction="none")


def aimed_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Log p(label)."""
    return -F.cross_entropy(logits, label, reduction="none")


def margin(logits: Tensor, label: Tensor) -> Tensor:
    """Best other logit less the label's: positive exactly when the label is left.

    Carlini, Wagner 2017 (arXiv:1608.04644), f6 without its floor.
    """
    return _best_other(logits, label) - _of(logits, label)


def aimed_margin(logits: Tensor, label: Tensor) -> Tensor:
    """The label's logit less the best other: positive exactly when the label is reached."""
    return -margin(logits, label)


def dlr(logits: Tensor, label: Tensor) -> Tensor:
    """Difference of logits ratio (Croce, Hein 2020, arXiv:2003.01690, eq. 6).

    The margin over the gap between first and third logit: invariant to shift and scale of logits,
    so that it does not vanish where a network is made confident to mask its gradient. The margin
    alone where there are two classes.
    """
    if logits.shape[1] < DLR_CLASSES:
        return margin(logits, label)
    ordered = logits.sort(dim=1, descending=True).values
    return margin(logits, label) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def aimed_dlr(target: Tensor) -> Loss:
    """Targeted DLR towards one class a row (the same paper, eq. 7); `target` is [N].

    Without the ratio where there are two or three classes.
    """

    def loss(logits: Tensor, label: Tensor) -> Tensor:
        gained = _of(logits, target) - _of(logits, label)
        if logits.shape[1] < AIMED_DLR_CLASSES:
            return gained
        ordered = logits.sort(dim=1, descending=True).values
        return gained / (ordered[:, 0] - 0.5 * (ordered[:, 2] + ordered[:, 3]) + 1e-12)

    return loss


def likeliest_dlr(logits: Tensor, label: Tensor) -> Tensor:
    """Targeted DLR towards the likeliest class other than the label."""
    others = logits.detach().scatter(1, label[:, None], -torch.inf)
    return aimed_dlr(others.argmax(dim=1))(logits, label)


def loss_name(loss: Loss, classes: int) -> str:
    """Name of what an attack raises on a classifier of some classes."""
    if loss is cross_entropy:
        return "cross-entropy"
    if loss is dlr and classes >= DLR_CLASSES:
        return "DLR"
    if loss is likeliest_dlr and classes >= AIMED_DLR_CLASSES:
        return "targeted DLR"
    return "margin"


def _of(logits: Tensor, label: Tensor) -> Tensor:
    return logits.gather(1, label[:, None])[:, 0]


def _best_other(logits: Tensor, label: Tensor) -> Tensor:
    mask = F.one_hot(label, logits.shape[1]).bool()
    return torch.where(mask, torch.full_like(logits, -torch.inf), logits).amax(dim=1)
