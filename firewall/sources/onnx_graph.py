"""An ONNX file of somebody's: what it takes and gives, and the graph as it goes into a bundle.

The graph is kept as it is, so that it answers a guard's clients what it answers anywhere. What
changes is around it: sizes that were open are fixed, weights from other files are taken in,
features are given out as further outputs, and names of files and people are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper, inliner

from firewall.errors import ConfigError
from firewall.protocol.tensors import TensorInfo
from firewall.sources.options import SourceOptions

_NAMES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.DOUBLE: "FP64", onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.INT8: "INT8", onnx.TensorProto.INT16: "INT16",
    onnx.TensorProto.INT32: "INT32", onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.UINT16: "UINT16", onnx.TensorProto.UINT32: "UINT32",
    onnx.TensorProto.UINT64: "UINT64", onnx.TensorProto.BOOL: "BOOL",
}  # fmt: skip
#: Datatypes of images.
IMAGE_TYPES = ("FP32", "FP16", "UINT8")
#: Words in the names of outputs with class scores, the likeliest first.
_SCORE_WORDS = ("logit", "prob", "softmax", "score", "class", "pred")


@dataclass(frozen=True)
class Signature:
    """What a graph takes and gives.

    Attributes:
        input: the images.
        outputs: all of them, in order.

    """

    input: TensorInfo
    outputs: tuple[TensorInfo, ...]


def read_model(path: Path) -> onnx.ModelProto:
    """Read a file with all of its weights.

    Raises:
        ConfigError: it cannot be read, or is no ONNX model.

    """
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise ConfigError(f"{path} is not an ONNX model") from error
    if not model.graph.node:
        raise ConfigError(f"{path} is not an ONNX model, or has no nodes")
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ConfigError(
            f"{path} keeps weights in other files, which must lie beside it: {first_line(error)}"
        ) from error
    if model.functions:
        model = inliner.inline_local_functions(model)
    return model


def read_signature(model: onnx.ModelProto, where: str, options: SourceOptions) -> Signature:
    """Find the input of images, and the outputs.

    Args:
        model: the graph.
        where: name of the file, for errors.
        options: of the owner.

    Raises:
        ConfigError: it has several inputs, or its input is no batch of images.

    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(repr(one.name) for one in inputs) or "none"
        raise ConfigError(
            f"{where} has the inputs {names}; expected one, of images. Export it with the others "
            "as constants"
        )
    found = _info(inputs[0])
    if options.input not in (None, found.name):
        raise ConfigError(f"--input: {options.input!r}; {where} has the input {found.name!r}")
    if found.datatype not in IMAGE_TYPES:
        raise ConfigError(
            f"{where}: input {found.name!r} takes {found.datatype}; expected "
            f"{', '.join(IMAGE_TYPES)}"
        )
    return Signature(found, tuple(_info(one) for one in model.graph.output))


def choose_output(
    outputs: Sequence[TensorInfo], where: str, options: SourceOptions, classes: int | None
) -> TensorInfo:
    """Choose the output with the class scores.

    Args:
        outputs: all of them.
        where: name of the source, for errors.
        options: of the owner.
        classes: how many the labels are; None where there are none.

    Raises:
        ConfigError: none fits, or several do.

    """
    names = ", ".join(f"{one.name!r} {list(one.shape)}" for one in outputs) or "none"
    if options.output is not None:
        chosen = [one for one in outputs if one.name == options.output]
        if not chosen:
            raise ConfigError(f"--output: {options.output!r}; {where} has the outputs {names}")
        return chosen[0]
    if len(outputs) == 1:
        return outputs[0]
    if classes is not None:
        fitting = [one for one in outputs if one.shape and one.shape[-1] == classes]
        if len(fitting) == 1:
            return fitting[0]
    for word in _SCORE_WORDS:
        fitting = [one for one in outputs if word in one.name.lower()]
        if len(fitting) == 1:
            return fitting[0]
    raise ConfigError(
        f"{where} has the outputs {names}; name the one with the class scores with --output"
    )


def prepare(
    model: onnx.ModelProto,
    sizes: Sequence[int],
    outputs: Sequence[str],
    taps: Mapping[str, str] | None = None,
) -> bytes:
    """Bring a graph into the form that lies in a bundle.

    Args:
        model: the graph; not changed.
        sizes: of one row of its input; a batch that is fixed stays so.
        outputs: names of those to keep.
        taps: output names by the names of tensors to give out, which are of the graph.

    Returns:
        The graph, serialised.

    Raises:
        ConfigError: it is over 2 GiB.

    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    constants = {tensor.name for tensor in graph.initializer}
    # Before IR version 4 weights are inputs as well, which no client sends.
    inputs = [one for one in graph.input if one.name not in constants]
    del graph.input[:]
    graph.input.extend(inputs)
    dims = graph.input[0].type.tensor_type.shape.dim
    while len(dims) < 1 + len(sizes):
        dims.add()
    if dims[0].dim_value < 1:
        dims[0].dim_param = "batch"
    for dim, size in zip(dims[1:], sizes, strict=True):
        dim.dim_value = size
    kept = [one for one in graph.output if one.name in outputs]
    del graph.output[:]
    for name in outputs:
        [value] = [one for one in kept if one.name == name]
        # What the file declares of sizes may be wrong once others are fixed.
        element = value.type.tensor_type.elem_type
        graph.output.append(onnx.helper.make_tensor_value_info(name, element, None))
    for tensor, output in (taps or {}).items():
        graph.node.append(onnx.helper.make_node("Identity", [tensor], [output]))
        graph.output.append(
            onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)
        )
    del graph.value_info[:]
    del made.metadata_props[:]
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    graph.doc_string = made.doc_string = ""
    try:
        return made.SerializeToString(deterministic=True)
    except ValueError as error:
        raise ConfigError("the model is over 2 GiB with its weights") from error


def first_line(error: Exception) -> str:
    """First line of an error's text, or its class."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    tensor = value.type.tensor_type
    shape = tuple(
        one.dim_value if one.dim_value > 0 else -1 for one in tensor.shape.dim
    ) if tensor.HasField("shape") else ()  # fmt: skip
    return TensorInfo(value.name, _NAMES.get(tensor.elem_type, "another type"), shape)
