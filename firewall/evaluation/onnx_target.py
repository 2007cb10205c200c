"""A bare classifier in an ONNX file, as something to evaluate.

The file is checked before anything is computed. Weights may lie in other files, but only beside it:
they become part of the graph, and so of its digest. A classifier that answers probabilities is
attacked through its logits, since the gradient of a softmax vanishes where it is sure.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import external_data_helper
from torch import Tensor, nn

from firewall.attack.victim import BareVictim, Victim
from firewall.errors import ConfigError, Unsupported
from firewall.lift import OnnxModule

#: What the outputs of a file are, and how they are attacked.
Outputs = Literal["logits", "softmax", "probabilities"]
#: The least probability of which the logarithm is taken.
_LEAST = 1e-30
_FLOAT = onnx.TensorProto.FLOAT


@dataclass(frozen=True)
class OnnxTarget:
    """A bare classifier: one float input [N, C, H, W] in [0, 1], one output [N, K].

    Attributes:
        name: of the file, without its ending.
        graph: the model, weights included.
        shape: of an image, (C, H, W).
        classes: how many.
        outputs: `logits`; `softmax` where the file ended in one, which `graph` does not; or
            `probabilities`, whose logarithm is attacked.

    """

    name: str
    graph: bytes
    shape: tuple[int, int, int]
    classes: int
    outputs: Outputs = "logits"

    @classmethod
    def read(cls, path: Path, shape: tuple[int, int, int]) -> OnnxTarget:
        """Open a file, and ask it once.

        Args:
            path: of the file.
            shape: of the images that it will be asked, (C, H, W).

        Raises:
            ConfigError: it cannot be read, or is no such classifier.

        """
        model = _load(path)
        _check_signature(path, model, shape)
        graph = _serialised(path, model)
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(1, *shape, generator=generator)
        x = torch.cat([torch.zeros(1, *shape), torch.ones(1, *shape), noise])
        answered = _ask(path, graph, x)
        outputs: Outputs = "logits"
        if _are_probabilities(answered):
            outputs = "probabilities"
            bare = _without_softmax(model)
            if bare is not None:
                logits = _ask(path, _serialised(path, bare), x)
                if torch.allclose(logits.softmax(dim=1), answered, atol=1e-4):
                    outputs, graph = "softmax", _serialised(path, bare)
        return cls(path.stem, graph, shape, answered.shape[1], outputs)

    @property
    def digest(self) -> str:
        """Of the model, weights included."""
        return hashlib.sha256(self.graph).hexdigest()

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, which are their numbers."""
        return tuple(str(number) for number in range(self.classes))

    @property
    def note(self) -> str | None:
        """What is said before the evaluation; None where there is nothing to say."""
        return {
            "logits": None,
            "softmax": f"{self.name} ends in a softmax; its logits are attacked",
            "probabilities": f"{self.name} answers probabilities; their logarithm is attacked",
        }[self.outputs]

    def victim(self, rate: float) -> Victim:
        """Return the bare classifier; there is no rate to keep."""
        return BareVictim(self.module())

    def module(self) -> nn.Module:
        """Return the graph as a differentiable module that answers logits."""
        return _OnnxClassifier(self.graph, logarithm=self.outputs == "probabilities")


class _OnnxClassifier(nn.Module):
    """An ONNX graph of one input and one output: [N, C, H, W] to [N, K]."""

    def __init__(self, graph: bytes, *, logarithm: bool = False) -> None:
        super().__init__()
        self.inner = OnnxModule(graph)
        self._logarithm = logarithm

    def forward(self, x: Tensor) -> Tensor:
        """Logits, with gradients."""
        [name] = self.inner.inputs
        answered: Tensor
        [answered] = self.inner(**{name: x}).values()
        return answered.clamp_min(_LEAST).log() if self._logarithm else answered


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"target: {path} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise ConfigError(f"target: {path} is not an ONNX model") from error
    if not model.graph.node:
        raise ConfigError(f"target: {path} is not an ONNX model, or has no nodes")
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ConfigError(
            f"target: {path} keeps weights in other files, which must lie beside it: "
            f"{_first_line(error)}"
        ) from error
    return model


def _serialised(path: Path, model: onnx.ModelProto) -> bytes:
    try:
        return model.SerializeToString(deterministic=True)
    except ValueError as error:
        raise ConfigError(f"target: {path} is over 2 GiB with its weights") from error


def _check_signature(path: Path, model: onnx.ModelProto, shape: tuple[int, int, int]) -> None:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in constants]
    outputs = list(model.graph.output)
    for kind, found in (("input", inputs), ("output", outputs)):
        if len(found) != 1:
            names = ", ".join(repr(one.name) for one in found) or "none"
            raise ConfigError(f"target: {path} has the {kind}s {names}; expected one")
    [entry], wanted = inputs, f"float images [rows, {', '.join(map(str, shape))}]"
    tensor = entry.type.tensor_type
    if tensor.elem_type != _FLOAT:
        try:
            kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        except ValueError:
            kind = "unknown"
        raise ConfigError(f"target: {path} takes {kind} values; expected {wanted}")
    if not tensor.HasField("shape"):
        return
    # Some exporters write -1 where any size is meant.
    sizes = [one.dim_value if one.dim_value > 0 else None for one in tensor.shape.dim]
    told = [("any" if size is None else str(size)) for size in sizes]
    if len(sizes) != 4 or any(
        size not in (None, other) for size, other in zip(sizes[1:], shape, strict=True)
    ):
        raise ConfigError(f"target: {path} takes [{', '.join(told)}]; expected {wanted}")
    if sizes[0] is not None:
        count = "1 row" if sizes[0] == 1 else f"{sizes[0]} rows"
        raise ConfigError(
            f"target: {path} takes exactly {count} at a time; export it with a dynamic first axis"
        )


def _ask(path: Path, graph: bytes, x: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            answered: Tensor = _OnnxClassifier(graph)(x)
    except Exception as error:  # a foreign graph may fail in any way
        why = str(error) if isinstance(error, Unsupported) else _first_line(error)
        wanted = ", ".join(map(str, x.shape[1:]))
        raise ConfigError(
            f"target: {path} is no classifier of images [rows, {wanted}] in ONNX ({why})"
        ) from error
    if answered.ndim != 2 or answered.shape[1] < 2 or len(answered) != len(x):
        raise ConfigError(
            f"target: {path} answers {list(answered.shape)} for {len(x)} images; expected logits "
            "[rows, classes]"
        )
    if not bool(torch.isfinite(answered).all()):
        raise ConfigError(f"target: {path} answers values that are not finite")
    return answered


def _are_probabilities(answered: Tensor) -> bool:
    sums = answered.double().sum(dim=1)
    return bool((answered >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all())


def _without_softmax(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The same model, answering what goes into the softmax at its end; None where there is none."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    graph = bare.graph
    producers = {name: node for node in graph.node for name in node.output}
    node = producers.get(graph.output[0].name)
    while node is not None and node.op_type == "Identity":
        node = producers.get(node.input[0])
    if node is None or node.op_type != "Softmax":
        return None
    graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(node.input[0], _FLOAT, None))
    return bare


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
