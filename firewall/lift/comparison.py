"""Comparisons, logic, and the selection that reads them.

A step hides nothing: whoever knows the graph slides over it (BPDA, Athalye et al. 2018). While
gradients are recorded, a comparison is 0.0 or 1.0 and has the gradient of a sigmoid; logic and
`Where` pass that gradient on, and give the values that they give to booleans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from firewall.lift.elementwise import aligned
from firewall.lift.node import EVERY, NONE, SIGMOID, Node, Operator, Run, plain
from firewall.stages import with_surrogate


def _comparison(run: Callable[[Any, Any], Tensor], sign: float) -> Callable[[Node], Run]:
    def compare(a: Tensor, b: Tensor) -> Tensor:
        floating = a.is_floating_point() or b.is_floating_point()
        if not (floating and torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)):
            return run(a, b)
        apart = sign * (a - b)
        width = _deviation(apart.detach()) / 4 + 1e-6
        return with_surrogate(
            apart,
            lambda v: run(a, b).to(v.dtype),
            lambda v: torch.sigmoid(v / width),
        )

    return lambda node: aligned(node, compare)


def _deviation(values: Tensor) -> float:
    found = float(values.std(unbiased=False)) if values.numel() else 0.0
    if found - found == 0:
        return found
    # Infinities, such as those of a mask, say nothing about the width.
    finite = values[torch.isfinite(values)]
    return float(finite.std(unbiased=False)) if finite.numel() else 0.0


def _where(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    if not condition.is_floating_point():
        return torch.where(condition, yes, no)
    chosen = torch.where(condition != 0, yes, no)
    if not (condition.requires_grad and chosen.is_floating_point()):
        return chosen
    # Both sides matter to whoever slides over the comparison. The term is 0 in the forward pass.
    apart = (yes - no).detach()
    apart = torch.where(torch.isfinite(apart), apart, torch.zeros_like(apart))
    return chosen + ((condition - condition.detach()) * apart).to(chosen.dtype)


def _logic(run: Run, soft: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Node], Run]:
    def combine(a: Tensor, b: Tensor) -> Tensor:
        if a.is_floating_point() or b.is_floating_point():
            kind = a.dtype if a.is_floating_point() else b.dtype
            return soft(a.to(kind), b.to(kind))
        result: Tensor = run(a, b)
        return result

    return lambda node: aligned(node, combine)


def _not(x: Tensor) -> Tensor:
    return 1 - x if x.is_floating_point() else torch.logical_not(x)


def _boolean(node: Node) -> torch.dtype:
    return torch.bool


def _compared(run: Callable[[Any, Any], Tensor], sign: float) -> Operator:
    return Operator(_comparison(run, sign), SIGMOID, taken=EVERY, result=_boolean)


def _combined(run: Run, soft: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return Operator(_logic(run, soft), taken=EVERY, result=_boolean)


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "And": _combined(torch.logical_and, lambda a, b: a * b),
        # Exact, and without a gradient: of a one-hot vote what is left is what stands beside it.
        "Equal": Operator(lambda node: aligned(node, torch.eq), NONE, taken=EVERY),
        "Greater": _compared(torch.gt, 1.0),
        "GreaterOrEqual": _compared(torch.ge, 1.0),
        "Less": _compared(torch.lt, -1.0),
        "LessOrEqual": _compared(torch.le, -1.0),
        "Not": Operator(plain(_not), taken=(0,), result=_boolean),
        "Or": _combined(torch.logical_or, lambda a, b: a + b - a * b),
        "Where": Operator(plain(_where), taken=(0,), kept=(1, 2)),
        "Xor": _combined(torch.logical_xor, lambda a, b: a + b - 2 * a * b),
    }
)
