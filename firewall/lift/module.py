"""An ONNX graph as a differentiable torch module: what is attacked is the very file that is served.

An operator, or a form of one, that the lift does not have is an error by name; nothing is
approximated in silence. `docs/reference/operators.md` lists what it has.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import torch
from torch import Tensor, nn

from firewall.errors import Unsupported
from firewall.lift.graph import Graph, read
from firewall.lift.node import Refusal


class OnnxModule(nn.Module):
    """Runs a graph on tensors by name, with gradients.

    While gradients are recorded, outputs of whole numbers or booleans that a gradient reaches are
    floating point; without gradients every output has the type of the file.
    """

    def __init__(self, data: bytes) -> None:
        """Read a graph.

        Args:
            data: the model, weights included.

        Raises:
            Unsupported: the lift does not have an operator of the graph; the text names all.

        """
        super().__init__()
        graph = read(onnx.load_from_string(data))
        if graph.missing:
            raise Unsupported(_refused(graph.missing))
        self.inputs = graph.inputs
        self.outputs = graph.outputs
        self._assign(graph)

    def _assign(self, graph: Graph) -> None:
        """Give every value a place, so that a run looks up no names.

        Place 0 is an absent input, the last one takes results that nobody wants.
        """
        names = [*graph.constants, *graph.inputs]
        names += [name for step in graph.steps for name in step.outputs if name]
        places = {"": 0}
        for name in names:
            places.setdefault(name, len(places))
        unwanted = len(places)
        last = {name: number for number, step in enumerate(graph.steps) for name in step.inputs}
        for name in (*graph.outputs, *graph.constants, ""):
            last.pop(name, None)
        self._steps = []
        for number, step in enumerate(graph.steps):
            inputs = tuple(places[name] for name in step.inputs)
            outputs = tuple(places[name] if name else unwanted for name in step.outputs)
            spent = [
                places[name] for name in dict.fromkeys(step.inputs) if last.get(name) == number
            ]
            spent += [
                places[name]
                for name in step.outputs
                if name and name not in last and name not in graph.outputs
            ]
            if unwanted in outputs:
                spent.append(unwanted)
            self._steps.append((step, inputs, outputs, tuple(spent)))
        for number, value in enumerate(graph.constants.values()):
            self.register_buffer(f"constant_{number}", value)
        self._places = len(places) + 1
        self._entries = tuple((name, places[name]) for name in graph.inputs)
        self._exits = tuple((name, places[name]) for name in graph.outputs)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Tensors by input name to tensors by output name.

        Raises:
            Unsupported: these inputs lead to a form of an operator that the lift does not have.

        """
        values: list[Tensor | None] = [None, *self._buffers.values()]
        values += [None] * (self._places - len(values))
        for name, place in self._entries:
            values[place] = inputs[name]
        try:
            for step, sources, targets, spent in self._steps:
                result = step([values[place] for place in sources])
                if isinstance(result, tuple):
                    for place, value in zip(targets, result, strict=False):
                        values[place] = value
                else:
                    values[targets[0]] = result
                for place in spent:
                    values[place] = None
        except Refusal as refusal:
            raise Unsupported(_refused([str(refusal)])) from refusal
        return {name: values[place] for name, place in self._exits}  # type: ignore[misc]


def unsupported(model: onnx.ModelProto | bytes) -> list[str]:
    """List what of a model the lift does not have, each once, as errors name it.

    An operator is named with its domain, or with the form of it that is lacking:
    `'FusedConv' (com.microsoft)`, `'BatchNormalization' (training mode)`.
    """
    if isinstance(model, bytes):
        model = onnx.load_from_string(model)
    with torch.no_grad():
        return list(read(model).missing)


def _refused(missing: Sequence[str]) -> str:
    return (
        f"operators not supported by the lift: {', '.join(missing)}; "
        "re-export the model with standard operators"
    )
