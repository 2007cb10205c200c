"""Whole classifiers against onnxruntime: the light models that the onnx package carries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from firewall.lift import OnnxModule

LIGHT = Path(onnx.backend.test.__file__).parent / "data" / "light"


def weighted(name: str) -> onnx.ModelProto:
    """A light model, whose weights all have one value, with random ones."""
    model = onnx.load(LIGHT / f"light_{name}.onnx")
    graph = model.graph
    shapes = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    random = np.random.default_rng(0)
    for node in list(graph.node):
        if node.op_type != "ConstantOfShape":
            continue
        shape = shapes[node.input[0]]
        if len(shape) > 1:
            values = random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        else:
            # Also variances, which are positive.
            values = random.uniform(0.5, 1.5, size=shape)
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.output[0]))
        graph.node.remove(node)
    return model


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("inception_v1", marks=pytest.mark.slow),
        pytest.param("inception_v2", marks=pytest.mark.slow),
        "shufflenet",
        "squeezenet",
        pytest.param("resnet50", marks=pytest.mark.slow),
        pytest.param("densenet121", marks=pytest.mark.slow),
        pytest.param("bvlc_alexnet", marks=pytest.mark.slow),
        pytest.param("vgg19", marks=pytest.mark.slow),
        pytest.param("zfnet512", marks=pytest.mark.slow),
    ],
)
def test_classifier_is_what_onnxruntime_has(name: str) -> None:
    model = weighted(name)
    constants = {one.name for one in model.graph.initializer}
    [entry] = [one for one in model.graph.input if one.name not in constants]
    data = model.SerializeToString()
    x = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    [served] = session.run(None, {entry.name: x.numpy()})
    assert served.std() > 0
    with torch.no_grad():
        [found] = OnnxModule(data)(**{entry.name: x}).values()
    assert np.abs(found.numpy() - served).max() <= 1e-3 * np.abs(served).max()
