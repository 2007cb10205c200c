"""Forgeries by which denoisers learn."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from firewall.stages import RAW, Lesson


def forged(lesson: Lesson, x: Tensor, label: Tensor, share: float) -> Tensor:
    """[N, C, H, W] moved away from their classes [N], within a share of the lesson's radius."""

    def loss(at: Tensor) -> Tensor:
        return F.cross_entropy(lesson.look(at).logits[RAW], label, reduction="none")

    return lesson.forge(x, loss, share)
