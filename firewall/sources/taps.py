"""Features inside a graph for detectors: what the classifier's last layer reads, and earlier ones.

Taps are pooled over places or tokens inside the graph, so that what leaves it is small: the last
to each channel's mean, [N, C], earlier ones to mean and log of the standard deviation, [N, 2 C].
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from firewall.guard.classifier import POOL_FLOOR

#: Name of the tap before the last layer.
PENULTIMATE = "penultimate"
#: Operators between the last layer and the scores.
_AFTER_LAST = frozenset(
    {"Softmax", "LogSoftmax", "Sigmoid", "Identity", "Reshape", "Squeeze", "Flatten", "Cast",
     "Add", "DequantizeLinear", "QuantizeLinear", "Unsqueeze", "Transpose", "Mul", "Clip"}
)  # fmt: skip
_LAYERS = frozenset({"Gemm", "MatMul", "Conv"})
#: Depths at which taps are taken, in parts of the layers.
_DEPTHS = tuple((number + 1) / 7 for number in range(6))
_FLOATS = {
    "tensor(float)": onnx.TensorProto.FLOAT,
    "tensor(float16)": onnx.TensorProto.FLOAT16,
    "tensor(double)": onnx.TensorProto.DOUBLE,
}
#: Opset from which on Sub takes tensors of other shapes.
_BROADCASTS = 7
#: Features of a tap, at most: of more, memory and time are not worth it.
_MAX_FEATURES = 8192


def add_taps(
    model: onnx.ModelProto,
    output: str,
    wire: npt.NDArray[np.generic],
    wanted: Collection[str] | None = None,
) -> tuple[onnx.ModelProto, dict[str, str], dict[str, tuple[int, ...]]]:
    """Pool features of a graph, where any can be found.

    Args:
        model: the graph, with fixed sizes; not changed.
        output: name of the class scores.
        wire: [N, ...] rows on which shapes are looked at.
        wanted: taps that stages read; None pools all that there are.

    Returns:
        The graph with the pooled tensors; their names by tap; and the shape of one row's features
        by tap.

    """
    places = {
        tap: tensor
        for tap, tensor in _places(model, output).items()
        if wanted is None or tap in wanted
    }
    shapes = _shapes(model, list(places.values()), wire)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    names: dict[str, str] = {}
    features: dict[str, tuple[int, ...]] = {}
    seen: set[str] = set()
    for tap, tensor in places.items():
        if tensor not in shapes or tensor in seen:
            continue
        shape, kind = shapes[tensor]
        axes = {2: (), 3: (1,), 4: (2, 3)}.get(len(shape))
        if axes is None or kind not in _FLOATS:
            continue
        width = shape[1] if len(shape) != 3 else shape[2]
        if not 1 < width <= _MAX_FEATURES:
            continue
        seen.add(tensor)
        spread = tap != PENULTIMATE and bool(axes) and _opset(model) >= _BROADCASTS
        names[tap] = _pool(made, tensor, tap, axes, _FLOATS[kind], spread=spread)
        features[tap] = (2 * width if spread else width,)
    return made, names, features


def _places(model: onnx.ModelProto, output: str) -> dict[str, str]:
    """Tensors by tap: earlier layers first, then what the last layer reads."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    producers = {name: node for node in graph.node for name in node.output}
    node = producers.get(output)
    while node is not None and node.op_type in _AFTER_LAST:
        data = [name for name in node.input if name and name not in constants]
        node = producers.get(data[0]) if data else None
    last = node if node is not None and node.op_type in _LAYERS else None
    layers = [one for one in graph.node if one.op_type in _LAYERS and one.output[0] in producers]
    found: dict[str, str] = {}
    for number, depth in enumerate(_DEPTHS, 1):
        if len(layers) > 2 * len(_DEPTHS):
            found[f"depth-{number}"] = layers[int(depth * len(layers))].output[0]
    data = [] if last is None else [name for name in last.input if name and name not in constants]
    if data:
        found[PENULTIMATE] = data[0]
    return found


def _shapes(
    model: onnx.ModelProto, names: Sequence[str], wire: npt.NDArray[np.generic]
) -> Mapping[str, tuple[tuple[int, ...], str]]:
    """Shape and type of tensors, as they come out when the graph runs."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    kept = [one.name for one in probe.graph.output]
    for name in dict.fromkeys(names):
        if name not in kept:
            probe.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(
            probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        values = session.run(None, {session.get_inputs()[0].name: wire})
    except Exception:  # onnxruntime raises its own, undocumented classes; then there are no taps
        return {}
    found = {}
    for one, value in zip(session.get_outputs(), values, strict=True):
        if one.name in names and value.shape[:1] == wire.shape[:1]:
            found[one.name] = (tuple(value.shape), one.type)
    return found


def _opset(model: onnx.ModelProto) -> int:
    return next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 1)


def _pool(
    model: onnx.ModelProto,
    tensor: str,
    tap: str,
    axes: Sequence[int],
    element: int,
    *,
    spread: bool,
) -> str:
    """Append nodes that pool a tensor over axes, as float32; returns the result's name."""
    graph = model.graph
    opset = _opset(model)
    prefix = f"firewall.{tap}"

    def node(kind: str, result: str, *inputs: str, **attributes: Any) -> str:
        name = f"{prefix}.{result}"
        graph.node.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(result: str, value: npt.NDArray[np.generic]) -> str:
        name = f"{prefix}.{result}"
        graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def mean(result: str, of: str, *, keepdims: int) -> str:
        if opset < 18:
            return node("ReduceMean", result, of, axes=list(axes), keepdims=keepdims)
        places = constant(f"{result}.axes", np.array(axes, np.int64))
        return node("ReduceMean", result, of, places, keepdims=keepdims)

    name = tensor
    if element != onnx.TensorProto.FLOAT:
        name = node("Cast", "float", name, to=onnx.TensorProto.FLOAT)
    if not axes:
        return name
    if not spread:
        return mean("mean", name, keepdims=0)
    centred = node("Sub", "centred", name, mean("centre", name, keepdims=1))
    variance = mean("variance", node("Mul", "squares", centred, centred), keepdims=0)
    floor = constant("floor", np.array(POOL_FLOOR, np.float32))
    log = node("Log", "log", node("Add", "floored", variance, floor))
    half = node("Mul", "spread", log, constant("half", np.array(0.5, np.float32)))
    return node("Concat", "pooled", mean("mean", name, keepdims=0), half, axis=1)
