"""How a lesson's forgeries are made."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from firewall.stages.contract import Forge, RowLoss


def forger(radius: float, steps: int) -> Forge:
    """Projected gradient ascent within a ball, on any loss.

    Args:
        radius: L-infinity, of the ball at share 1; of L2, that of its corners.
        steps: of it, each two and a half radii over their number long.

    Returns:
        The attacker. It starts from the images: equal calls, equal forgeries.

    """

    def forge(
        x: Tensor, loss: RowLoss, share: float, norm: Literal["linf", "l2"] = "linf"
    ) -> Tensor:
        reach = share * radius
        if norm == "l2":
            reach *= x[0].numel() ** 0.5
        point = x
        for _ in range(steps):
            point = point.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(point).sum(), point)
            if norm == "l2":
                moved = point.detach() + 2.5 * reach / steps * gradient / _length(gradient)
                delta = moved - x
                point = (x + delta * (reach / _length(delta)).clamp_max(1.0)).clamp(0.0, 1.0)
                continue
            moved = point.detach() + 2.5 * reach / steps * gradient.sign()
            point = (x + (moved - x).clamp(-reach, reach)).clamp(0.0, 1.0)
        return point.detach()

    return forge


def _length(x: Tensor) -> Tensor:
    """[N, 1, 1, 1]: L2 norm of each row."""
    length: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1).clamp_min(1e-12)
    return length.view(-1, 1, 1, 1)
