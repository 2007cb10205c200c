"""MatMul, Gemm and Einsum, with the transpositions and factors of their attributes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from firewall.lift.node import Node, Operator, Refusal, Run, in_single, plain


def _gemm(node: Node) -> Run:
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    left, right = node.flag("transA"), node.flag("transB")

    def multiply(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        if not a.is_floating_point() and (alpha, beta) != (1.0, 1.0):
            raise Refusal("alpha or beta on integers")
        a = a.t() if left else a
        if right and c is not None and c.ndim == 1 and len(c) == len(b) and alpha == beta == 1:
            return F.linear(a, b, c)
        product = a @ (b.t() if right else b)
        if alpha != 1:
            product = alpha * product
        if c is None:
            return product
        return product + (c if beta == 1 else beta * c)

    return in_single(multiply)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


def _einsum(node: Node) -> Run:
    equation = str(node.required("equation"))
    return in_single(lambda *inputs: torch.einsum(equation, *inputs))


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "Einsum": Operator(_einsum),
        "Gemm": Operator(_gemm),
        "MatMul": Operator(plain(in_single(_matmul))),
    }
)
