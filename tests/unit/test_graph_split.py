"""Two tiers with one classifier between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from firewall.bundle.spec import GuardSpec, InputSpec, StageSpec
from firewall.guard.assemble import assemble
from firewall.guard.classifier import Classifier, ClassifierOutput
from firewall.guard.compile import compile_embedded
from firewall.screening.compiled import CompiledGuard
from firewall.screening.graph_split import Cut, cut
from firewall.stages.registry import Registry
from tests.support.tiny import GUARD, INPUT, TinyClassifier
from tests.support.tiny import wire as wire_of

VIEWS = StageSpec(kind="detector", name="views", plugin="view-consistency")
BLUR = StageSpec(kind="denoiser", name="blur", plugin="gaussian-blur")
BITS = StageSpec(kind="denoiser", name="bits", plugin="bit-depth", config={"bits": 3})
NOISE = StageSpec(kind="detector", name="noise", plugin="noise-floor")
NEAR = StageSpec(kind="detector", name="near", plugin="feature-norm")

SPECS = {
    "all": GUARD,
    "one view, which ends with what the wire begins with": GuardSpec(stages=(BLUR, VIEWS)),
    "rounding views": GuardSpec(stages=(BITS, BLUR, NOISE, VIEWS, NEAR)),
}
BYTES = InputSpec(channels=3, height=32, width=32, layout="NHWC", datatype="UINT8", high=255.0)


class Residual(Classifier):
    """With a branch, a batch norm and something after the last layer."""

    taps = ("penultimate",)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.stem = nn.Conv2d(3, 16, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Linear(16, 10)
        self.num_classes = 10
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> ClassifierOutput:
        y = torch.relu(self.norm(self.stem(x)))
        y = torch.relu(self.inner(y)) + y
        features = y.mean(dim=(2, 3))
        return ClassifierOutput(2 * torch.tanh(self.last(features)), {"penultimate": features})


def graphs_of(
    spec: GuardSpec, registry: Registry, classifier: Any = TinyClassifier, wire: InputSpec = INPUT
) -> Mapping[str, bytes]:
    return compile_embedded(assemble(spec, registry, classifier()), wire)


def parts(graphs: Mapping[str, bytes], worth: int = 0) -> Cut | None:
    return cut(graphs["cheap.onnx"], graphs["expensive.onnx"], worth)


def weights(graph: bytes) -> int:
    return sum(one.ByteSize() for one in onnx.load_from_string(graph).graph.initializer)


@pytest.mark.parametrize("wire", [INPUT, BYTES], ids=["floats", "bytes"])
@pytest.mark.parametrize("classifier", [TinyClassifier, Residual])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_pieces_say_what_the_whole_says(
    spec: GuardSpec, classifier: Any, wire: InputSpec, registry: Registry
) -> None:
    graphs = graphs_of(spec, registry, classifier, wire)
    found = parts(graphs)
    assert found is not None
    for piece in (found.front, found.body, found.before, found.after):
        onnx.checker.check_model(onnx.load_from_string(piece.graph))
    whole, shared = CompiledGuard(graphs), CompiledGuard(graphs, shared_from=0)
    for count in (1, 2, 30):
        rows = np.concatenate([wire_of(1, seed) for seed in range(count)])
        if wire is BYTES:
            rows = (rows.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
        one, other = whole.cheap(rows), shared.cheap(rows)
        assert np.array_equal(one.logits, other.logits)
        assert np.array_equal(one.statistics, other.statistics)
        some = np.arange(0, count, 2)
        here, there = whole.expensive(rows, one, some), shared.expensive(rows, other, some)
        assert np.allclose(here.log_probabilities, there.log_probabilities, atol=1e-5)
        assert np.allclose(here.statistics, there.statistics, atol=1e-5)


def test_the_weights_are_there_once(registry: Registry) -> None:
    graphs = graphs_of(GUARD, registry)
    found = parts(graphs)
    assert found is not None
    both = weights(graphs["cheap.onnx"]) + weights(graphs["expensive.onnx"])
    assert weights(found.body.graph) > 0.45 * both
    pieces = (found.front, found.body, found.before, found.after)
    assert sum(weights(one.graph) for one in pieces) < 0.6 * both
    assert "logits" in found.body.outputs
    assert found.image in found.body.inputs


def test_few_weights_are_not_worth_it(registry: Registry) -> None:
    graphs = graphs_of(GUARD, registry)
    size = weights(graphs["cheap.onnx"])
    assert parts(graphs, size // 2) is not None
    assert parts(graphs, size) is None
    # Nor is a small network by default.
    assert type(CompiledGuard(graphs)._tiers) is not type(
        CompiledGuard(graphs, shared_from=0)._tiers
    )


def test_another_classifier_is_another(registry: Registry) -> None:
    graphs = dict(graphs_of(GUARD, registry))
    model = onnx.load_from_string(graphs["expensive.onnx"])
    [bias] = [one for one in model.graph.initializer if one.name.endswith("first.bias")]
    values = np.frombuffer(bias.raw_data, np.float32).copy()
    values[0] += 1
    bias.raw_data = values.tobytes()
    assert parts(graphs | {"expensive.onnx": model.SerializeToString()}) is None


def test_what_is_used_from_within_the_classifier_keeps_it_whole(registry: Registry) -> None:
    graphs = dict(graphs_of(GUARD, registry))
    model = onnx.load_from_string(graphs["expensive.onnx"])
    assert parts(graphs | {"expensive.onnx": model.SerializeToString()}) is not None
    inner = [node for node in model.graph.node if node.op_type == "Conv"][-1].output[0]
    model.graph.output.append(next(one for one in model.graph.value_info if one.name == inner))
    assert parts(graphs | {"expensive.onnx": model.SerializeToString()}) is None


@pytest.mark.parametrize("broken", [b"hello", b""])
def test_what_is_no_graph_is_left_to_who_opens_it(broken: bytes, registry: Registry) -> None:
    graphs = graphs_of(GUARD, registry)
    assert cut(graphs["cheap.onnx"], broken, 0) is None
    assert cut(broken, graphs["expensive.onnx"], 0) is None


def test_graphs_within_nodes_are_left_alone(registry: Registry) -> None:
    graphs = dict(graphs_of(GUARD, registry))
    model = onnx.load_from_string(graphs["expensive.onnx"])
    node = model.graph.node.add(op_type="If", input=["logits"], output=["unused"])
    node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH, g=onnx.GraphProto())
    assert parts(graphs | {"expensive.onnx": model.SerializeToString()}) is None
