"""Read an ONNX model into steps: what is to be run, on which values, in which order.

Local functions are inlined, nodes that no output needs are left out, and what follows from
constants alone is computed once. An `If` whose condition is known by then becomes the branch that
it takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
from onnx import inliner, shape_inference
from torch import Tensor

from firewall.lift.node import Node, Operator, Refusal, Run, widened
from firewall.lift.table import NEWEST_OPSET, OPERATORS
from firewall.lift.tensors import DTYPES, tensor_of

_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Step:
    """One node, ready to run.

    Attributes:
        label: the operator's name, for errors.
        run: takes the inputs in order, None where one is absent (an empty name).
        inputs: names of values.
        outputs: names of values; empty where nobody wants one.

    """

    label: str
    run: Run
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __call__(self, arguments: Sequence[Tensor | None]) -> Any:
        """Run the node.

        Raises:
            Refusal: the lift does not have this form of the operator; the text begins with the
                operator's name.

        """
        try:
            return self.run(*arguments)
        except Refusal as refusal:
            raise Refusal(f"{self.label} ({refusal})") from None
        except NotImplementedError as error:
            return self._without_kernel(arguments, error)

    def _without_kernel(
        self, arguments: Sequence[Tensor | None], error: NotImplementedError
    ) -> Any:
        """Run in single precision what torch has no 16-bit kernel for."""
        for kind in (torch.float16, torch.bfloat16):
            if any(one is not None and one.dtype == kind for one in arguments):
                return widened(self.run, arguments, kind)
        raise Refusal(f"{self.label} ({str(error).splitlines()[0]})") from error


@dataclass(frozen=True)
class Graph:
    """A model that was read.

    Attributes:
        inputs: names, in order.
        outputs: names, in order.
        constants: values by name, those that steps or outputs need.
        steps: in the order in which they run.
        missing: operators that the lift does not have, as they are named in errors.

    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Tensor]
    steps: tuple[Step, ...]
    missing: tuple[str, ...]


def read(model: onnx.ModelProto) -> Graph:
    """Read a model, and list all that the lift does not have."""
    if model.functions:
        model = inliner.inline_local_functions(model)
    reader = _Reader(_opset(model))
    return reader.read(model)


def _opset(model: onnx.ModelProto) -> int:
    versions = [one.version for one in model.opset_import if one.domain in _STANDARD]
    return max(versions, default=1)


@dataclass
class _Reader:
    opset: int
    constants: dict[str, Tensor] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    #: Types of values as ONNX has them, where known.
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    #: Values that may be stand-ins.
    stand_ins: set[str] = field(default_factory=set)
    #: In order, each once.
    missing: dict[str, None] = field(default_factory=dict)

    def read(self, model: onnx.ModelProto) -> Graph:
        graph = model.graph
        if self.opset > NEWEST_OPSET:
            self._miss(f"opset {self.opset}, newer than {NEWEST_OPSET}")
        if any(node.op_type == "CastLike" for node in graph.node):
            self._infer(model)
        outputs = tuple(one.name for one in graph.output)
        nodes = _needed(graph.node, outputs)
        wanted = {name for node in nodes for name in _used(node)} | set(outputs)
        self._initialise(graph, wanted, {})
        inputs = tuple(one.name for one in graph.input if one.name not in _initialised(graph))
        for one in graph.input:
            if one.name in inputs:
                self._declare(one)
        self._nodes(nodes, {}, wanted)
        steps, constants = self._pruned(outputs)
        return Graph(inputs, outputs, constants, steps, tuple(self.missing))

    def _miss(self, what: str) -> None:
        self.missing.setdefault(what)

    def _infer(self, model: onnx.ModelProto) -> None:
        """Learn the types of all values, which `CastLike` needs."""
        for one in shape_inference.infer_shapes(model).graph.value_info:
            kind = DTYPES.get(one.type.tensor_type.elem_type)
            if kind is not None:
                self.dtypes[one.name] = kind

    def _declare(self, entry: onnx.ValueInfoProto) -> None:
        kind = DTYPES.get(entry.type.tensor_type.elem_type)
        if not entry.type.HasField("tensor_type"):
            # Without a type at all it is a tensor; that is how some exporters write it.
            if entry.type.WhichOneof("value") is not None:
                self._miss(f"input {entry.name!r}, which is no tensor")
        elif kind is not None:
            self.dtypes[entry.name] = kind
            if not kind.is_floating_point:
                # A caller who wants gradients of whole numbers gives them as floats.
                self.stand_ins.add(entry.name)

    def _initialise(
        self, graph: onnx.GraphProto, wanted: set[str], scope: Mapping[str, str]
    ) -> None:
        for proto in graph.initializer:
            name = scope.get(proto.name, proto.name)
            if name not in wanted:
                continue
            try:
                self._know(name, tensor_of(proto))
            except Refusal as refusal:
                self._miss(f"initializer {proto.name!r} ({refusal})")
        for sparse in graph.sparse_initializer:
            self._miss(f"initializer {sparse.values.name!r} (sparse)")

    def _know(self, name: str, value: Tensor) -> None:
        self.constants[name] = value
        self.dtypes[name] = value.dtype

    def _nodes(
        self, nodes: Iterable[onnx.NodeProto], scope: Mapping[str, str], wanted: set[str]
    ) -> None:
        for node in nodes:
            inputs = tuple(scope.get(name, name) for name in node.input)
            outputs = tuple(scope.get(name, name) for name in node.output)
            try:
                if node.domain not in _STANDARD:
                    raise Refusal(node.domain)
                if node.op_type == "If":
                    self._branch(node, inputs, outputs, scope, wanted)
                elif node.op_type not in OPERATORS:
                    self._miss(repr(node.op_type))
                else:
                    kept = tuple(name if name in wanted else "" for name in outputs)
                    self._node(node, OPERATORS[node.op_type], inputs, kept)
            except Refusal as refusal:
                self._miss(f"{node.op_type!r} ({refusal})")

    def _node(
        self,
        proto: onnx.NodeProto,
        operator: Operator,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
    ) -> None:
        node = Node(
            operator=proto.op_type,
            opset=self.opset,
            attributes={one.name: _attribute(one) for one in proto.attribute},
            constants=tuple(self.constants.get(name) for name in inputs),
            dtypes=tuple(self.dtypes.get(name) for name in inputs),
            given=tuple(bool(name) for name in inputs),
            declared=len(outputs),
            results=max((index + 1 for index, name in enumerate(outputs) if name), default=1),
        )
        run = self._with_real_types(operator, operator.build(node), inputs)
        step = Step(repr(proto.op_type), run, inputs, outputs)
        if all(not name or name in self.constants for name in inputs):
            with torch.no_grad():
                try:
                    found = step([self.constants.get(name) for name in inputs])
                except Refusal as refusal:
                    self._miss(str(refusal))
                    return
            for name, value in zip(
                outputs, found if isinstance(found, tuple) else (found,), strict=False
            ):
                if name:
                    self._know(name, value)
            return
        self.steps.append(step)
        self._mark(node, operator, inputs, outputs)

    def _with_real_types(self, operator: Operator, run: Run, inputs: Sequence[str]) -> Run:
        """Convert stand-ins for an operator that needs the integers or booleans themselves."""
        kinds = [
            (position, self.dtypes[name])
            for position, name in enumerate(inputs)
            if name in self.stand_ins
            and position not in operator.kept
            and position not in operator.taken
        ]
        if not kinds:
            return run

        def wrapped(*arguments: Tensor | None) -> Any:
            real = list(arguments)
            for position, kind in kinds:
                value = real[position]
                if value is not None and value.dtype != kind:
                    real[position] = value.to(kind)
            return run(*real)

        return wrapped

    def _mark(
        self, node: Node, operator: Operator, inputs: Sequence[str], outputs: Sequence[str]
    ) -> None:
        """Note which outputs may be stand-ins, and for what."""
        kind = None if operator.result is None else operator.result(node)
        if kind is None:
            kind = next(
                (
                    self.dtypes[name]
                    for position, name in enumerate(inputs)
                    if position in operator.kept and name in self.stand_ins
                ),
                None,
            )
        if kind is None:
            return
        for name in outputs if operator.every_output else outputs[:1]:
            if name:
                self.dtypes[name] = kind
                self.stand_ins.add(name)

    def _branch(
        self,
        node: onnx.NodeProto,
        inputs: Sequence[str],
        outputs: Sequence[str],
        scope: Mapping[str, str],
        wanted: set[str],
    ) -> None:
        condition = self.constants.get(inputs[0])
        if condition is None:
            raise Refusal("a condition that is not known when the graph is read")
        name = "then_branch" if bool(condition) else "else_branch"
        [graph] = [one.g for one in node.attribute if one.name == name]
        # Names of a branch are its own: two branches may use one twice.
        own = [one.name for one in graph.initializer]
        own += [name for inner in graph.node for name in inner.output if name]
        inner_scope = {**scope, **{name: f"{outputs[0]}/{name}" for name in own}}
        ends = tuple(inner_scope.get(one.name, one.name) for one in graph.output)
        nodes = _needed(graph.node, [one.name for one in graph.output])
        inner_wanted = {inner_scope.get(one, one) for inner in nodes for one in _used(inner)}
        inner_wanted |= set(ends)
        self._initialise(graph, inner_wanted, inner_scope)
        self._nodes(nodes, inner_scope, inner_wanted)
        for outer, inner in zip(outputs, ends, strict=True):
            if inner in self.constants:
                self._know(outer, self.constants[inner])
                continue
            self.steps.append(Step("'Identity'", lambda x: x, (inner,), (outer,)))
            if inner in self.dtypes:
                self.dtypes[outer] = self.dtypes[inner]
            if inner in self.stand_ins:
                self.stand_ins.add(outer)

    def _pruned(self, outputs: Sequence[str]) -> tuple[tuple[Step, ...], dict[str, Tensor]]:
        """Leave out steps and constants that nothing needs after folding."""
        needed = set(outputs)
        steps = []
        for step in reversed(self.steps):
            if needed.intersection(step.outputs):
                needed.update(step.inputs)
                steps.append(step)
        constants = {name: value for name, value in self.constants.items() if name in needed}
        return tuple(reversed(steps)), constants


def _initialised(graph: onnx.GraphProto) -> set[str]:
    return {one.name for one in graph.initializer}


def _used(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, those in its subgraphs included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (one.name for one in graph.output)
            for inner in graph.node:
                yield from _used(inner)


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that outputs need, each after those that it needs itself.

    Files are to be sorted so, but runtimes sort them too, and some converters count on that.
    """
    producers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    ordered: list[int] = []
    done: set[int] = set()
    for output in outputs:
        stack = [(producers[output], False)] if output in producers else []
        while stack:
            index, ready = stack.pop()
            if ready:
                ordered.append(index)
            elif index not in done:
                done.add(index)
                stack.append((index, True))
                sources = [producers[name] for name in _used(nodes[index]) if name in producers]
                stack += [(source, False) for source in sources if source not in done]
    if all(_sorted_at(nodes[index], producers, index) for index in ordered):
        ordered.sort()
    return [nodes[index] for index in ordered]


def _sorted_at(node: onnx.NodeProto, producers: Mapping[str, int], index: int) -> bool:
    return all(producers.get(name, -1) < index for name in _used(node))


def _attribute(proto: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (str, int, float)) or not isinstance(value, Sequence):
        return value
    return [one.decode("utf-8", "replace") if isinstance(one, bytes) else one for one in value]
