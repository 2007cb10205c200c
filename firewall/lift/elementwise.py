"""Operators that treat every element alike: arithmetic, functions, activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from firewall.lift.node import EVERY, NONE, STRAIGHT, Node, Operator, Refusal, Run, plain
from firewall.stages import with_surrogate


def aligned(node: Node, run: Run) -> Run:
    """Broadcast as before opset 7: the second input from the attribute `axis` on."""
    axis = node.attributes.get("axis")
    if node.opset >= 7 or axis is None:
        return run

    def legacy(a: Tensor, b: Tensor) -> Tensor:
        trailing = a.ndim - axis % a.ndim - b.ndim
        result: Tensor = run(a, b.reshape(*b.shape, *[1] * trailing))
        return result

    return legacy


def _binary(run: Run) -> Callable[[Node], Run]:
    return lambda node: aligned(node, run)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point() or b.is_floating_point():
        return torch.div(a, b)
    return torch.div(a, b, rounding_mode="trunc")


def _power(a: Tensor, b: Tensor) -> Tensor:
    # The result has the type of the base. torch wants a negative exponent of integers as floats.
    if a.is_floating_point():
        return torch.pow(a, b).to(a.dtype)
    return torch.pow(a.double(), b).to(a.dtype)


def _modulo(node: Node) -> Run:
    if node.flag("fmod"):
        return torch.fmod
    if node.opset < 28:

        def whole(a: Tensor, b: Tensor) -> Tensor:
            if a.is_floating_point():
                raise Refusal("fmod=0 on floating point")
            return torch.remainder(a, b)

        return whole
    return torch.remainder


def _fold(run: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Node], Run]:
    """Build an operator that takes any number of tensors."""

    def fold(first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = run(first, other)
        return first

    return plain(fold)


def _mean(first: Tensor, *others: Tensor) -> Tensor:
    total = first
    for other in others:
        total = total + other
    return total / (1 + len(others))


def _clip(node: Node) -> Run:
    low, high = node.numbers(1, "min"), node.numbers(2, "max")
    movable = [at for at in (1, 2) if node.has(at) and node.constant(at) is None]
    if movable:
        return torch.clamp

    bounds = [read([]) for read in (low, high)]
    lowest, highest = [None if one is None else one[0] for one in bounds]

    def clip(x: Tensor, *_: Tensor | None) -> Tensor:
        if lowest is None and highest is None:
            return x
        # A bound of an integer type was read as a float only if it is exact as one.
        if not x.is_floating_point():
            return torch.clamp(
                x,
                None if lowest is None else int(lowest),
                None if highest is None else int(highest),
            )
        return torch.clamp(x, lowest, highest)

    return clip


def _straight(run: Callable[[Tensor], Tensor]) -> Callable[[Node], Run]:
    return plain(lambda x: with_surrogate(x, run, lambda v: v))


def _sign(x: Tensor) -> Tensor:
    # torch's sign of a NaN is 0.
    return torch.sign(x) if not x.is_floating_point() else torch.sign(x) + (x - x) * 0


def _leaky_relu(node: Node) -> Run:
    alpha = node.number("alpha", 0.01)
    return lambda x: F.leaky_relu(x, alpha)


def _elu(node: Node) -> Run:
    alpha = node.number("alpha", 1.0)
    return lambda x: F.elu(x, alpha)


def _celu(node: Node) -> Run:
    alpha = node.number("alpha", 1.0)
    return lambda x: F.celu(x, alpha)


def _selu(node: Node) -> Run:
    old = node.opset < 6
    alpha = node.number("alpha", 1.6732 if old else 1.67326319217681884765625)
    gamma = node.number("gamma", 1.0507 if old else 1.05070102214813232421875)
    # Not F.elu with a scale: alpha and gamma are the node's own.
    return lambda x: gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


def _hard_sigmoid(node: Node) -> Run:
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)
    return lambda x: torch.clamp(x * alpha + beta, 0.0, 1.0)


def _thresholded_relu(node: Node) -> Run:
    alpha = node.number("alpha", 1.0)
    return lambda x: torch.where(x > alpha, x, torch.zeros_like(x))


def _shrink(node: Node) -> Run:
    lambd, bias = node.number("lambd", 0.5), node.number("bias", 0.0)

    def shrink(x: Tensor) -> Tensor:
        zero = torch.zeros_like(x)
        return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero))

    return shrink


def _swish(node: Node) -> Run:
    alpha = node.number("alpha", 1.0)
    return lambda x: x * torch.sigmoid(alpha * x)


def _gelu(node: Node) -> Run:
    approximate = node.text("approximate", "none")
    return lambda x: F.gelu(x, approximate=approximate)


def _prelu(node: Node) -> Run:
    def prelu(x: Tensor, slope: Tensor) -> Tensor:
        # Before opset 7 one slope a channel.
        if node.opset < 7 and slope.ndim == 1 and slope.numel() > 1:
            slope = slope.reshape(-1, *[1] * (x.ndim - 2))
        return torch.where(x < 0, slope * x, x)

    return prelu


def _is_inf(node: Node) -> Run:
    negative, positive = node.flag("detect_negative", True), node.flag("detect_positive", True)

    def is_inf(x: Tensor) -> Tensor:
        found = torch.zeros_like(x, dtype=torch.bool)
        if negative:
            found = found | (x == -math.inf)
        if positive:
            found = found | (x == math.inf)
        return found

    return is_inf


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "Abs": Operator(plain(torch.abs)),
        "Acos": Operator(plain(torch.acos)),
        "Acosh": Operator(plain(torch.acosh)),
        "Add": Operator(_binary(torch.add)),
        "Asin": Operator(plain(torch.asin)),
        "Asinh": Operator(plain(torch.asinh)),
        "Atan": Operator(plain(torch.atan)),
        "Atanh": Operator(plain(torch.atanh)),
        "Ceil": Operator(_straight(torch.ceil), STRAIGHT),
        "Celu": Operator(_celu),
        "Clip": Operator(_clip, kept=(0,)),
        "Cos": Operator(plain(torch.cos)),
        "Cosh": Operator(plain(torch.cosh)),
        "Div": Operator(_binary(_divide)),
        "Elu": Operator(_elu),
        "Erf": Operator(plain(torch.erf)),
        "Exp": Operator(plain(torch.exp)),
        "Floor": Operator(_straight(torch.floor), STRAIGHT),
        "Gelu": Operator(_gelu),
        "HardSigmoid": Operator(_hard_sigmoid),
        "HardSwish": Operator(plain(F.hardswish)),
        "IsInf": Operator(_is_inf, NONE),
        "IsNaN": Operator(plain(torch.isnan), NONE),
        "LeakyRelu": Operator(_leaky_relu),
        "Log": Operator(plain(torch.log)),
        "Max": Operator(_fold(torch.maximum), kept=EVERY),
        "Mean": Operator(plain(_mean)),
        "Min": Operator(_fold(torch.minimum), kept=EVERY),
        "Mish": Operator(plain(F.mish)),
        "Mod": Operator(_modulo),
        "Mul": Operator(_binary(torch.mul)),
        "Neg": Operator(plain(torch.neg)),
        "PRelu": Operator(_prelu),
        "Pow": Operator(_binary(_power)),
        "Reciprocal": Operator(plain(torch.reciprocal)),
        "Relu": Operator(plain(torch.relu), kept=(0,)),
        "Round": Operator(_straight(torch.round), STRAIGHT),
        "Selu": Operator(_selu),
        "Shrink": Operator(_shrink),
        "Sigmoid": Operator(plain(torch.sigmoid)),
        "Sign": Operator(_straight(_sign), STRAIGHT),
        "Sin": Operator(plain(torch.sin)),
        "Sinh": Operator(plain(torch.sinh)),
        "Softplus": Operator(plain(F.softplus)),
        "Softsign": Operator(plain(F.softsign)),
        "Sqrt": Operator(plain(torch.sqrt)),
        "Sub": Operator(_binary(torch.sub)),
        "Sum": Operator(_fold(torch.add)),
        "Swish": Operator(_swish),
        "Tan": Operator(plain(torch.tan)),
        "Tanh": Operator(plain(torch.tanh)),
        "ThresholdedRelu": Operator(_thresholded_relu),
    }
)
