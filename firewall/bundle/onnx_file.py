"""Proves that an ONNX graph keeps all of its data inside the file."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import DecodeError

from firewall.errors import BundleMalformed
from firewall.wire import onnx_subset_pb2 as subset

#: Operator sets that onnxruntime itself brings. Others would need code that a bundle cannot hold.
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})


def check_graph(name: str, data: bytes) -> None:
    """Refuse what is not a self-contained ONNX model.

    Raises:
        BundleMalformed: not a model, data outside the file, or an unknown operator domain.

    """
    try:
        model = subset.Model.FromString(data)
    except DecodeError as error:
        raise BundleMalformed(f"{name}: not an ONNX model") from error
    if not model.graph.node:
        raise BundleMalformed(f"{name}: an ONNX model without nodes")
    _check(name, model.graph)
    if model.functions or model.training_info:
        raise BundleMalformed(f"{name}: local functions and training graphs are not served")


def _check(name: str, graph: subset.Graph) -> None:
    _tensors(name, graph.initializer)
    for sparse in graph.sparse_initializer:
        _tensors(name, (sparse.values, sparse.indices))
    _nodes(name, graph.node)


def _nodes(name: str, nodes: Iterable[subset.Node]) -> None:
    for node in nodes:
        if node.domain not in DOMAINS:
            raise BundleMalformed(f"{name}: operator {node.op_type!r} of domain {node.domain!r}")
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _tensors(name, (attribute.t,))
            _tensors(name, attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                _tensors(name, (sparse.values, sparse.indices))
            if attribute.HasField("g"):
                _check(name, attribute.g)
            for inner in attribute.graphs:
                _check(name, inner)


def _tensors(name: str, tensors: Iterable[subset.Tensor]) -> None:
    for tensor in tensors:
        if tensor.data_location == subset.Tensor.EXTERNAL or tensor.external_data:
            raise BundleMalformed(f"{name}: tensor {tensor.name!r} keeps its data outside the file")
