"""What an operator is to the lift: a builder that turns one node of a graph into a function.

A builder reads attributes once, when the graph is read. The function that it returns takes the
node's inputs as tensors (None where an optional one is absent) and returns one tensor, or a tuple
where the node has several outputs.

Whole numbers and booleans carry no gradient in torch. Where a gradient has to pass through them
(a rounded pixel, a comparison), they are floating-point tensors with whole values instead, the
*stand-ins* of this package. They exist only while gradients are recorded; without them every
tensor has the type that ONNX gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Run = Callable[..., Any]

#: Positions of all inputs, however many there are.
EVERY: Sequence[int] = range(1 << 31)

#: How gradients pass an operator, for the reference page.
EXACT = "exact"
NONE = "none"
STRAIGHT = "straight through: forward as specified, backward as if it did not round"
SIGMOID = "surrogate: a sigmoid as wide as a quarter of the argument's deviation"
SELECTED = "exact for the values; none for indices and sizes"


class Refusal(Exception):
    """A node uses a form of its operator that the lift does not have; the text says which."""


@dataclass(frozen=True)
class Node:
    """A node of a graph, as its builder reads it.

    Attributes:
        operator: name, such as `Conv`.
        opset: version of the standard operators that the model imports.
        attributes: by name; strings as `str`, tensors as `onnx.TensorProto`.
        constants: the inputs that are known when the graph is read, by position.
        dtypes: types of the inputs as ONNX has them, where known.
        given: which inputs are not absent.
        declared: outputs that the node names, used or not.
        results: outputs up to the last one that is used.

    """

    operator: str
    opset: int
    attributes: Mapping[str, Any]
    constants: tuple[Tensor | None, ...]
    dtypes: tuple[torch.dtype | None, ...]
    given: tuple[bool, ...]
    declared: int
    results: int

    def has(self, position: int) -> bool:
        """Whether the input at a position is given."""
        return position < len(self.given) and self.given[position]

    def constant(self, position: int) -> Tensor | None:
        """The input at a position, if it is known now."""
        return self.constants[position] if self.has(position) else None

    def dtype(self, position: int) -> torch.dtype | None:
        """The type of the input at a position, if it is known now."""
        return self.dtypes[position] if self.has(position) else None

    def integer(self, name: str, default: int) -> int:
        """An attribute that is a whole number."""
        return int(self.attributes.get(name, default))

    def flag(self, name: str, default: bool = False) -> bool:
        """An attribute that is 0 or 1."""
        return bool(self.attributes.get(name, default))

    def number(self, name: str, default: float) -> float:
        """An attribute that is a floating-point number."""
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        """An attribute that is a string."""
        return str(self.attributes.get(name, default))

    def required(self, name: str) -> Any:
        """An attribute without a default."""
        try:
            return self.attributes[name]
        except KeyError:
            raise Refusal(f"no attribute {name!r}") from None

    def integers(
        self, position: int, attribute: str = ""
    ) -> Callable[[Sequence[Tensor | None]], list[int] | None]:
        """Return a reader of a list of whole numbers from the inputs; of None where absent.

        Args:
            position: of the input.
            attribute: that holds the list in older opsets.

        """
        fixed = self._fixed(position, attribute)
        if fixed is not None:
            whole = [int(value) for value in fixed]
            return lambda inputs: list(whole)
        if not self.has(position):
            return lambda inputs: None
        return lambda inputs: whole_numbers(inputs[position])

    def numbers(
        self, position: int, attribute: str = ""
    ) -> Callable[[Sequence[Tensor | None]], list[float] | None]:
        """Return a reader of a list of numbers from the inputs, as `integers`."""
        fixed = self._fixed(position, attribute)
        if fixed is not None:
            return lambda inputs: list(fixed)
        if not self.has(position):
            return lambda inputs: None

        def read(inputs: Sequence[Tensor | None]) -> list[float] | None:
            values = inputs[position]
            return None if values is None else [float(one) for one in values.reshape(-1).tolist()]

        return read

    def _fixed(self, position: int, attribute: str) -> list[Any] | None:
        if attribute and attribute in self.attributes:
            value = self.attributes[attribute]
            return list(value) if isinstance(value, (list, tuple)) else [value]
        constant = self.constant(position)
        return None if constant is None else list(constant.reshape(-1).tolist())


@dataclass(frozen=True)
class Operator:
    """An operator of the lift.

    Attributes:
        build: makes the function of a node.
        gradient: how gradients pass.
        kept: positions of inputs that may be stand-ins; the output then is one of the same type.
        taken: positions of inputs that may be stand-ins and end there.
        result: type that the output stands in for, if it may be a stand-in of its own making.
        every_output: stand-ins are all outputs, not only the first.

    """

    build: Callable[[Node], Run]
    gradient: str = EXACT
    kept: Sequence[int] = ()
    taken: Sequence[int] = ()
    result: Callable[[Node], torch.dtype | None] | None = None
    every_output: bool = False


def plain(run: Run) -> Callable[[Node], Run]:
    """Return the builder of an operator without attributes."""
    return lambda node: run


def whole_numbers(values: Tensor | None) -> list[int] | None:
    """A tensor's values as a flat list of `int`; None for None."""
    return None if values is None else [int(one) for one in values.reshape(-1).tolist()]


def in_single(run: Run) -> Run:
    """Compute 16-bit floating point in 32 bits on a CPU, and round the result.

    The products of half-precision numbers are summed in single precision by other runtimes too,
    and torch's own kernels for them are slow on a CPU.
    """

    def wrapped(x: Tensor, *rest: Tensor | None) -> Any:
        if x.dtype not in (torch.float16, torch.bfloat16) or x.device.type != "cpu":
            return run(x, *rest)
        return widened(run, (x, *rest), x.dtype)

    return wrapped


def widened(run: Run, inputs: Sequence[Tensor | None], dtype: torch.dtype) -> Any:
    """Run on inputs in single precision, and give floating results the type asked for."""
    result = run(
        *(one.float() if one is not None and one.dtype == dtype else one for one in inputs)
    )
    if isinstance(result, Tensor):
        return result.to(dtype) if result.is_floating_point() else result
    return tuple(one.to(dtype) if one.is_floating_point() else one for one in result)
