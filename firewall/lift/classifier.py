"""A classifier's own graph as a differentiable classifier of image batches."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import torch
from torch import Tensor
from torch.nn import functional as F

from firewall.bundle.spec import InputSpec
from firewall.errors import Unsupported
from firewall.guard.classifier import Classifier, ClassifierOutput
from firewall.guard.wire_input import DTYPES, WireInput
from firewall.lift.module import OnnxModule
from firewall.screening.local_model import FEATURE
from firewall.screening.scores import LEAST, Scores

#: Operators that leave values as they are.
_PASSING = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast"})


class LiftedClassifier(Classifier):
    """What `firewall.screening.local_model.LocalModel` runs, in torch and with gradients.

    Probabilities become logits as the server makes them so. Their gradient is taken before the
    softmax or sigmoid that made them: behind it, it vanishes where the classifier is sure.
    """

    def __init__(
        self, graph: bytes, output: str, scores: Scores, spec: InputSpec, taps: Sequence[str] = ()
    ) -> None:
        """Lift a graph.

        Args:
            graph: with one input of images.
            output: name of the class scores.
            scores: how they are to be read.
            spec: of the input.
            taps: features that the graph gives, by outputs named `FEATURE` and the tap.

        Raises:
            Unsupported: an operator of the graph cannot be lifted.

        """
        super().__init__()
        model = onnx.load_from_string(graph)
        before = _before_activation(model, output, scores)
        if before is not None:
            model.graph.output.append(onnx.ValueInfoProto(name=before))
        kept = {output, before, *(FEATURE + tap for tap in taps)}
        outputs = [one for one in model.graph.output if one.name in kept]
        del model.graph.output[:]
        model.graph.output.extend(outputs)
        try:
            self.network = OnnxModule(model.SerializeToString())
        except (TypeError, ValueError, KeyError, IndexError, RuntimeError) as error:
            raise Unsupported(
                f"the lift cannot read this graph: {str(error).splitlines()[0][:200]}; does "
                "onnx.checker find it valid?"
            ) from error
        [self._input] = self.network.inputs
        self._output, self._before = output, before
        self._scores, self._spec = scores, spec
        self._wire = WireInput(spec)
        self._taps = tuple(taps)
        self.num_classes = scores.classes
        shape = model.graph.input[0].type.tensor_type.shape
        self._rows = shape.dim[0].dim_value if shape.dim else 0
        self.eval().requires_grad_(False)

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the features."""
        return self._taps

    @property
    def before_activation(self) -> bool:
        """Whether gradients are taken before the softmax or sigmoid that ends the graph."""
        return self._before is not None

    def forward(self, x: Tensor) -> ClassifierOutput:
        """[N, C, H, W] in [0, 1] to logits [N, K] and features by tap."""
        wire = self._to_wire(x)
        if self._rows and len(wire) != self._rows:
            # The graph fixes its batch: as many passes as it takes.
            passes = [self._run(part) for part in _padded(wire, self._rows)]
            logits = torch.cat([one.logits for one in passes])[: len(x)]
            return ClassifierOutput(
                logits,
                {
                    tap: torch.cat([one.features[tap] for one in passes])[: len(x)]
                    for tap in self._taps
                },
            )
        return self._run(wire)

    def _run(self, wire: Tensor) -> ClassifierOutput:
        found = self.network(**{self._input: wire})
        answers = found[self._output].float().flatten(1)
        before = None if self._before is None else found[self._before].float().flatten(1)
        features = {tap: found[FEATURE + tap].float() for tap in self._taps}
        return ClassifierOutput(self._logits(answers, before), features)

    def _to_wire(self, x: Tensor) -> Tensor:
        wire = self._wire.back_float(x)
        if self._spec.datatype == "UINT8":
            # Rounded as it is sent, with the gradient of what is not rounded; floating point, so
            # that there is one.
            return wire + (wire.round().clamp(0.0, 255.0) - wire).detach()
        return wire.to(DTYPES[self._spec.datatype])

    def _logits(self, answers: Tensor, before: Tensor | None) -> Tensor:
        """As `Scores.logits`, with the gradient of what went into the activation."""
        one = answers.shape[1] == 1
        if self._scores.spec.activation == "logits":
            return torch.cat([torch.zeros_like(answers), answers], dim=1) if one else answers
        if one:
            served = torch.cat([_log(1.0 - answers), _log(answers)], dim=1)
            soft = None
            if before is not None:
                soft = torch.cat([F.logsigmoid(-before), F.logsigmoid(before)], dim=1)
        elif self._scores.spec.activation == "softmax":
            served = _log(answers)
            soft = None if before is None else torch.log_softmax(before, dim=1)
        else:
            served, soft = _log(answers) - _log(1.0 - answers), before
        return served if soft is None else soft + (served - soft).detach()


def _before_activation(model: onnx.ModelProto, output: str, scores: Scores) -> str | None:
    """The tensor that goes into the softmax or sigmoid at the end of a graph, if there is one."""
    wanted = {"softmax": "Softmax", "sigmoid": "Sigmoid"}.get(scores.spec.activation)
    if wanted is None:
        return None
    producers = {name: node for node in model.graph.node for name in node.output}
    node = producers.get(output)
    while node is not None and node.op_type in _PASSING:
        node = producers.get(node.input[0])
    if node is None or node.op_type != wanted:
        return None
    before: str = node.input[0]
    return None if before == output else before


def _log(p: Tensor) -> Tensor:
    return p.clamp_min(LEAST).log()


def _padded(wire: Tensor, rows: int) -> list[Tensor]:
    """Batches of so many rows, the last one filled up with copies of its last row."""
    parts = list(torch.split(wire, rows))
    lacking = rows - len(parts[-1])
    if lacking:
        parts[-1] = torch.cat([parts[-1], parts[-1][-1:].repeat(lacking, *[1] * (wire.ndim - 1))])
    return parts
