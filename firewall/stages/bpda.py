"""Backward pass differentiable approximation (Athalye, Carlini, Wagner 2018, arXiv:1802.00420).

A stage whose forward has no useful gradient (rounding, sorting, a median) names a smooth function
near it. The forward is exactly what is served; only the attacker's gradient takes the detour, so
that a guard is never credited with robustness that is only a masked gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor


class _Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        hard: Callable[[Tensor], Tensor],
        surrogate: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return hard(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            (grad,) = torch.autograd.grad(ctx.surrogate(x), x, grad_outputs[0])
        return grad, None, None


def with_surrogate(
    x: Tensor,
    hard: Callable[[Tensor], Tensor],
    surrogate: Callable[[Tensor], Tensor],
) -> Tensor:
    """`hard(x)`, whose gradient is that of `surrogate` at `x`.

    Both map x to one and the same shape. Without a gradient to carry (serving, export) this is
    `hard(x)` and nothing else.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return hard(x)
    return cast(Tensor, _Surrogate.apply(x, hard, surrogate))  # type: ignore[no-untyped-call]
