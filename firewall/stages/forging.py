"""How a lesson's forgeries are made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def forger(
    radius: float, steps: int
) -> Callable[[Tensor, Callable[[Tensor], Tensor], float], Tensor]:
    """Projected gradient ascent within an L-infinity ball, on any loss.

    Args:
        radius: of the ball, at share 1.
        steps: of it, each two and a half radii over their number long.

    Returns:
        `forge(x, loss, share)`: images within `share * radius` of [N, C, H, W] in [0, 1] at which
        `loss`, a value a row, is high. It starts from the images: equal calls, equal forgeries.

    """

    def forge(x: Tensor, loss: Callable[[Tensor], Tensor], share: float) -> Tensor:
        reach = share * radius
        point = x
        for _ in range(steps):
            point = point.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(point).sum(), point)
            moved = point.detach() + 2.5 * reach / steps * gradient.sign()
            point = (x + (moved - x).clamp(-reach, reach)).clamp(0.0, 1.0)
        return point.detach()

    return forge
