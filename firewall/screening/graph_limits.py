"""Refuse graphs whose tensors would be too large, before they are opened for running.

A file of 1 KB can ask for terabytes: Tile, Expand, Pad, Resize, Range and ConstantOfShape make
large tensors of small constants. onnxruntime knows most shapes without running anything: a copy of
the graph without its weights, in which every value is an output, is opened, and the shapes of its
outputs are read. That takes milliseconds and no memory for the values.

Shapes that depend on values (ConstantOfShape of a computed shape) are not known then. They are
bounded when the graph runs, by the shared arena of `firewall.screening.session`.
"""

from __future__ import annotations

import math
from typing import Any

import onnxruntime as ort
from google.protobuf.message import DecodeError

from firewall.bundle.onnx_file import check_size
from firewall.errors import BundleMalformed
from firewall.wire import onnx_subset_pb2 as subset

#: Rows of a pass that is not split: what the batcher of a server puts together.
BATCH_ROWS = 8
#: Values of the input of one pass, at most, on a processor: memory between the layers of a pass
#: stays allocated for the next one.
_PASS_VALUES = 1 << 16
#: Constants of more values are weights, which no shape depends on.
_WEIGHT_VALUES = 1024
_VALUE_BYTES = {
    "float": 4, "int32": 4, "uint32": 4, "float16": 2, "bfloat16": 2, "int16": 2, "uint16": 2,
    "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip


def rows_of_pass(values: int) -> int:
    """Rows of one pass on a processor, for rows of so many values."""
    return max(1, _PASS_VALUES // max(1, values))


def check_tensors(name: str, graph: bytes, rows: int | None = None) -> None:
    """Refuse a graph in which a tensor of known shape would be larger than `MAX_TENSOR`.

    Args:
        name: name of the file, for errors.
        graph: ONNX; checked by `check_graph`.
        rows: rows of a pass; None is `rows_of_pass` for the first input.

    Raises:
        BundleTooLarge: a tensor would be larger.
        BundleMalformed: onnxruntime cannot load the graph, or an input leaves more than the batch
            open.

    """
    try:
        model = subset.Model.FromString(graph)
    except DecodeError as error:
        raise BundleMalformed(f"{name}: not an ONNX model") from error
    _fix_inputs(name, model.graph, rows)
    _strip(model.graph)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime raises its own, undocumented classes
        raise BundleMalformed(f"{name}: onnxruntime cannot load this graph") from error
    for value in session.get_outputs():
        size = _size(value)
        if size is not None:
            check_size(name, value.name, size)


def _fix_inputs(name: str, graph: subset.Graph, rows: int | None) -> None:
    """Put the number of rows in place of the batch dimension of every input."""
    constants = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name in constants:
            continue
        dims = value.type.tensor_type.shape.dim
        open_dims = [dim for dim in dims if dim.WhichOneof("value") != "dim_value"]
        if not dims or len(open_dims) > 1:
            raise BundleMalformed(
                f"{name}: input {value.name!r} does not say its shape; only the batch may be open"
            )
        if rows is None:
            fixed = (dim.dim_value for dim in dims if dim not in open_dims)
            rows = rows_of_pass(math.prod(fixed))
        for dim in open_dims:
            dim.dim_value = rows


def _strip(graph: subset.Graph) -> None:
    """Turn weights into inputs of the same shape, and every value of a node into an output."""
    # What the file says about shapes may be wrong; onnxruntime shall infer them.
    del graph.value_info[:]
    del graph.output[:]
    inputs = {value.name for value in graph.input}
    kept = []
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= _WEIGHT_VALUES:
            kept.append(tensor)
        elif tensor.name not in inputs:
            value = graph.input.add(name=tensor.name)
            value.type.tensor_type.elem_type = tensor.data_type
            for size in tensor.dims:
                value.type.tensor_type.shape.dim.add(dim_value=size)
    small = [tensor.SerializeToString() for tensor in kept]
    del graph.initializer[:]
    graph.initializer.extend(subset.Tensor.FromString(data) for data in small)
    graph.output.extend(
        subset.ValueInfo(name=output) for node in graph.node for output in node.output if output
    )


def _size(value: Any) -> int | None:
    """Bytes of an output of a session; None where its shape is not known."""
    if value.shape is None or not all(isinstance(size, int) for size in value.shape):
        return None
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    size: int = math.prod(value.shape) * _VALUE_BYTES.get(kind, 8)
    return size
