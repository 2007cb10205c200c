"""What `firewall guard` is given, opened: a graph to run here, or a model to ask elsewhere."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from firewall.bundle.spec import InputSpec, TensorSpec
from firewall.errors import ConfigError, FirewallError
from firewall.lift import unsupported
from firewall.protocol.tensors import DATATYPES, TensorInfo
from firewall.screening.classifier import Array, SeparateClassifier
from firewall.screening.local_model import FEATURE, MODEL, LocalModel
from firewall.sources import served
from firewall.sources.describe import Size, input_size, label_count
from firewall.sources.onnx_graph import (
    choose_output,
    prepare,
    read_model,
    read_signature,
)
from firewall.sources.options import Hints, SourceOptions
from firewall.sources.taps import add_taps
from firewall.upstream.client import Upstream
from firewall.upstream.settings import UpstreamSettings

if TYPE_CHECKING:
    from firewall.sources.torch_model import TorchSource

_OIP_NAMES = {numpy_name: name for name, numpy_name in DATATYPES.items()}
#: Prefixes of served models.
SCHEMES = ("grpc://", "grpcs://", "http://", "https://")


@dataclass(frozen=True)
class Source:
    """A classifier as its owner named it.

    Attributes:
        text: as it was named.
        name: under which it may be served.
        architecture: for people.
        input: its images.
        outputs: all that it answers.
        output: the class scores among them.
        size: of its input.
        hints: what it says of its input.
        model: its graph; None where it is served elsewhere.
        module: what the graph was exported from; None of a file.
        upstream: where it is served; None where it is not.

    """

    text: str
    name: str
    architecture: str
    input: TensorInfo
    outputs: tuple[TensorInfo, ...]
    output: TensorInfo
    size: Size
    hints: Hints
    model: onnx.ModelProto | None
    upstream: UpstreamSettings | None
    module: TorchSource | None = None

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """Shape of one row on the wire."""
        size = self.size
        if size.layout == "NCHW":
            return (size.channels, size.height, size.width)
        return (size.height, size.width, size.channels)

    @property
    def digest(self) -> str:
        """SHA-256 of the graph, or of the place where it is served."""
        if self.model is None:
            return hashlib.sha256(self.text.encode()).hexdigest()
        return hashlib.sha256(self.model.SerializeToString(deterministic=True)).hexdigest()

    def open(self, others: tuple[str, ...] = ()) -> SeparateClassifier:
        """Open the classifier, to be asked.

        Raises:
            ConfigError: onnxruntime cannot load it.

        """
        if self.upstream is not None:
            return Upstream(
                self.upstream, input_name=self.input.name, output=self.output.name, others=others
            )
        graph = self.graph((self.output.name, *others))
        try:
            return LocalModel(graph, scores=self.output.name, others=others)
        except FirewallError as error:
            why = str(error).removeprefix(f"{MODEL}: ")
            raise ConfigError(f"{self.text}: {why}; does it run with onnxruntime?") from error

    def graph(self, outputs: tuple[str, ...], taps: Mapping[str, str] | None = None) -> bytes:
        """The graph as it goes into a bundle, with some of its outputs."""
        assert self.model is not None
        return prepare(self.model, self.row_shape, outputs, taps)


@dataclass(frozen=True)
class Embedded:
    """A graph ready for a bundle.

    Attributes:
        graph: serialised.
        taps: names of its features.
        features: shape of one row's features, by tap.

    """

    graph: bytes
    taps: tuple[str, ...]
    features: Mapping[str, tuple[int, ...]]


def open_source(text: str, options: SourceOptions, upstream: UpstreamSettings | None) -> Source:
    """Open what a user named.

    Args:
        text: an .onnx file, timm:NAME, hf:FOLDER, module:function, or the URL of a served model.
        options: what its owner says of it.
        upstream: settings of the URL, where it is one.

    Raises:
        ConfigError: it cannot be opened, or is no classifier of images.

    """
    labels = label_count(options)
    if upstream is not None:
        found = served.ask(upstream, options)
        output = choose_output(found.outputs, f"model {upstream.model!r}", options, labels)
        hints = Hints()
        return Source(
            text, options.name or upstream.model,
            f"served elsewhere{f', {found.platform}' if found.platform else ''}",
            found.input, found.outputs, output, input_size(found.input, options, hints), hints,
            None, upstream,
        )  # fmt: skip
    hints, name, module = Hints(), "", None
    if text.startswith(("timm:", "hf:")) or _is_factory(text):
        model, module, name = _torch_model(text, options)
        hints, architecture = module.hints, module.architecture
    elif text.endswith(".onnx") or Path(text).is_file():
        model = read_model(Path(text))
        architecture = _architecture(model, Path(text))
        name = Path(text).stem
    else:
        raise ConfigError(
            f"{text!r}: expected an .onnx file, timm:NAME, hf:FOLDER, package.module:function, or "
            "the URL of a served model (grpc://host:port/model, http://host:port/v2/models/NAME)"
        )
    if options.checkpoint is not None and not text.startswith("timm:"):
        raise ConfigError("--checkpoint: is for timm:NAME; other sources carry their weights")
    where = Path(text).name
    signature = read_signature(model, where, options)
    missing = unsupported(model)
    if missing:
        raise ConfigError(
            f"operators not supported by the lift: {', '.join(missing)}; a guard of {where} could "
            "not be attacked. Re-export the model with standard operators"
        )
    output = choose_output(signature.outputs, where, options, labels)
    return Source(
        text, options.name or _served_name(name), architecture,
        signature.input, signature.outputs, output,
        input_size(signature.input, options, hints), hints, model, None, module,
    )  # fmt: skip


def embed(
    source: Source,
    spec: InputSpec,
    others: tuple[TensorSpec, ...],
    wanted: Collection[str] | None = None,
) -> Embedded:
    """Bring a source's graph into the form in which a bundle carries it.

    Args:
        source: with a graph.
        spec: of the input, by which features are looked for.
        others: outputs that pass through.
        wanted: taps that stages read; None gives out all that there are.

    """
    names = (source.output.name, *(one.name for one in others))
    plain = onnx.load_from_string(source.graph(names))
    rows = plain.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 2
    rng = np.random.default_rng(0)
    wire: Array = rng.uniform(0, 1, (rows, *source.row_shape)).astype(
        {"UINT8": np.uint8, "FP16": np.float16, "FP32": np.float32}[spec.datatype]
    )
    tapped, tensors, features = add_taps(plain, source.output.name, wire, wanted)
    taps = {tensor: FEATURE + tap for tap, tensor in tensors.items()}
    return Embedded(prepare(tapped, source.row_shape, names, taps), tuple(tensors), features)


def pass_through(source: Source, wire: Array) -> tuple[TensorSpec, ...]:
    """Outputs beside the class scores that have a row for each image.

    Args:
        source: the classifier.
        wire: [N, ...] rows to ask it about.

    """
    found: list[TensorSpec] = []
    for info in source.outputs:
        if info.name == source.output.name:
            continue
        try:
            classifier = source.open((info.name,))
            try:
                values = classifier.infer(wire, None).others[info.name]
            finally:
                classifier.close()
        except FirewallError:
            continue
        datatype = _OIP_NAMES.get(values.dtype.name)
        if datatype is not None and values.ndim <= 9:
            found.append(
                TensorSpec(name=info.name, datatype=datatype, shape=tuple(values.shape[1:]))
            )
    return tuple(found)


def compare_module(source: Source, wire: Array, answers: Array) -> None:
    """Compare the graph that a module was exported to with the module, on images.

    Args:
        source: whose graph it is; a file has nothing to compare it with.
        wire: [N, ...] rows of images.
        answers: [M, K] of the graph, for these rows first.

    Raises:
        ConfigError: they differ, as where the module decides by its input what to compute.

    """
    if source.module is None:
        return
    from firewall.sources.torch_model import answers_of

    own = answers_of(source.module, wire)
    found = answers[: len(own)].astype(np.float32)
    scale = max(1e-3, float(np.abs(own).max()))
    if found.shape != own.shape or float(np.abs(found - own).max()) > 1e-2 * scale:
        raise ConfigError(
            f"{source.architecture}: its export to ONNX answers otherwise than the module itself, "
            "as where a module decides by its input what it computes. Rewrite the decision with "
            "torch.where, or export the model yourself and name the .onnx file"
        )


def _torch_model(text: str, options: SourceOptions) -> tuple[onnx.ModelProto, TorchSource, str]:
    from firewall.sources import torch_model

    if text.startswith("timm:"):
        name = text.removeprefix("timm:")
        made = torch_model.from_timm(name, options)
    elif text.startswith("hf:"):
        folder = Path(text.removeprefix("hf:"))
        made, name = torch_model.from_hugging_face(folder), folder.name
    else:
        made, name = torch_model.from_factory(text), text.rpartition(".")[2]
    size = options.shape or made.size
    if size is None:
        raise ConfigError(
            f"{text}: the size of its images is not known; name it with --shape "
            "channels,height,width"
        )
    return torch_model.export_module(made, size), made, name


def _is_factory(text: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text)) and not Path(text).exists()


def _architecture(model: onnx.ModelProto, path: Path) -> str:
    layers = sum(node.op_type in ("Conv", "Gemm", "MatMul") for node in model.graph.node)
    return f"{path.name}, {layers} layers"


def _served_name(name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")
    return plain[:128] or "model"
