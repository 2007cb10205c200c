"""Check that an ONNX graph is self-contained, has no control flow, and has no oversized constants.

Tensors that are computed when the graph runs are `firewall.screening.graph_limits`' matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from google.protobuf.message import DecodeError

from firewall.errors import BundleMalformed, BundleTooLarge
from firewall.wire import onnx_subset_pb2 as subset

#: Operator domains that a graph may use: the standard one, under both of its names. The exporter
#: (`firewall.guard.compile`) emits no other; contrib operators of onnxruntime are more native code
#: that a hostile graph could reach.
DOMAINS = frozenset({"", "ai.onnx"})
#: Operators that run a subgraph, as often as data says.
CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
#: Bytes of one tensor of a graph.
MAX_TENSOR = 512 << 20

#: Numbers of ONNX's data types by the bytes of a value; all others take at most eight.
_TYPES = {
    1: (2, 3, 9, 17, 18, 19, 20, 21, 22, 23),
    2: (4, 5, 10, 16),
    4: (1, 6, 12),
}
_VALUE_BYTES = {number: size for size, numbers in _TYPES.items() for number in numbers}


def check_graph(name: str, data: bytes) -> None:
    """Refuse a file that is not a self-contained ONNX graph without control flow.

    Args:
        name: name of the file, for errors.
        data: its content.

    Raises:
        BundleMalformed: not an ONNX model, data outside the file, control flow, or an operator of
            another domain.
        BundleTooLarge: a constant has more than `MAX_TENSOR` bytes.

    """
    try:
        model = subset.Model.FromString(data)
    except DecodeError as error:
        raise BundleMalformed(f"{name}: not an ONNX model") from error
    graph = model.graph
    if not graph.node:
        raise BundleMalformed(f"{name}: an ONNX model without nodes")
    if model.functions or model.training_info:
        raise BundleMalformed(f"{name}: local functions and training graphs are not served")
    if graph.sparse_initializer:
        raise BundleMalformed(f"{name}: sparse tensors are not served")
    _check_tensors(name, graph.initializer)
    _check_nodes(name, graph.node)


def _check_nodes(name: str, nodes: Iterable[subset.Node]) -> None:
    for node in nodes:
        if node.domain not in DOMAINS:
            raise BundleMalformed(
                f"{name}: operator {node.op_type!r} of domain {node.domain!r} is not served"
            )
        if node.op_type in CONTROL_FLOW:
            raise BundleMalformed(f"{name}: operator {node.op_type!r} is control flow; not served")
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                raise BundleMalformed(
                    f"{name}: operator {node.op_type!r} has a subgraph; control flow is not served"
                )
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise BundleMalformed(f"{name}: sparse tensors are not served")
            if attribute.HasField("t"):
                _check_tensors(name, (attribute.t,))
            _check_tensors(name, attribute.tensors)


def _check_tensors(name: str, tensors: Iterable[subset.Tensor]) -> None:
    for tensor in tensors:
        if tensor.data_location == subset.Tensor.EXTERNAL or tensor.external_data:
            raise BundleMalformed(f"{name}: tensor {tensor.name!r} keeps its data outside the file")
        count = math.prod(tensor.dims)
        # No encoding has more than eight values a byte. A tensor that claims more would have
        # memory allocated for values that it does not bring.
        if any(size < 0 for size in tensor.dims) or count > 8 * tensor.ByteSize():
            raise BundleMalformed(
                f"{name}: tensor {tensor.name!r} of shape {list(tensor.dims)} does not hold that "
                "many values"
            )
        check_size(name, tensor.name, count * _VALUE_BYTES.get(tensor.data_type, 8))


def check_size(name: str, tensor: str, size: int) -> None:
    """Refuse a tensor of more than `MAX_TENSOR` bytes.

    Args:
        name: name of the file, for errors.
        tensor: name of the tensor.
        size: bytes.

    Raises:
        BundleTooLarge: it is larger.

    """
    if size > MAX_TENSOR:
        raise BundleTooLarge(
            f"{name}: tensor {tensor!r} takes {size >> 20} MiB, over the limit of "
            f"{MAX_TENSOR >> 20} MiB"
        )
