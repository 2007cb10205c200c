"""What an attacker raises. Each maps logits [N, K] and labels [N] to [N]; higher is nearer success.

A loss is for leaving `label`; the aimed ones are for reaching it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]


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
    so that it does not vanish where a network is made confident to mask its gradient.
    """
    ordered = logits.sort(dim=1, descending=True).values
    third = min(2, logits.shape[1] - 1)
    return margin(logits, label) / (ordered[:, 0] - ordered[:, third] + 1e-12)


def aimed_dlr(target: Tensor) -> Loss:
    """Targeted DLR towards one class a row (the same paper, eq. 7); `target` is [N]."""

    def loss(logits: Tensor, label: Tensor) -> Tensor:
        ordered = logits.sort(dim=1, descending=True).values
        last = min(3, logits.shape[1] - 1)
        scale = ordered[:, 0] - 0.5 * (ordered[:, min(2, last)] + ordered[:, last]) + 1e-12
        return (_of(logits, target) - _of(logits, label)) / scale

    return loss


def _of(logits: Tensor, label: Tensor) -> Tensor:
    return logits.gather(1, label[:, None])[:, 0]


def _best_other(logits: Tensor, label: Tensor) -> Tensor:
    mask = F.one_hot(label, logits.shape[1]).bool()
    return torch.where(mask, torch.full_like(logits, -torch.inf), logits).amax(dim=1)
