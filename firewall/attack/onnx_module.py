"""An ONNX graph as a differentiable torch module: what is attacked is the very file that is served.

Node by node, with torch's own functions. Rounding and sign have no useful gradient: they go forward
as they are and backward as the identity (BPDA), so that no stage hides behind them. An operator
that is not known here is an error by name; nothing is approximated in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from firewall.errors import Unsupported
from firewall.stages import with_surrogate

Attributes = Mapping[str, Any]
Operator = Callable[[Sequence[Any], Attributes], Any]


class OnnxModule(nn.Module):
    """Runs a graph on tensors by name, with gradients."""

    def __init__(self, data: bytes) -> None:
        """Read a graph.

        Raises:
            Unsupported: an operator of the graph is not known here.

        """
        super().__init__()
        graph = onnx.load_from_string(data).graph
        constants = {tensor.name: _tensor(tensor) for tensor in graph.initializer}
        self.inputs = tuple(one.name for one in graph.input if one.name not in constants)
        self.outputs = tuple(one.name for one in graph.output)
        self._nodes: list[tuple[Operator, tuple[str, ...], tuple[str, ...], Attributes]] = []
        for node in graph.node:
            if node.op_type == "Constant":
                [attribute] = node.attribute
                constants[node.output[0]] = _constant(attribute)
                continue
            operator = _OPERATORS.get(node.op_type)
            if operator is None or node.domain not in ("", "ai.onnx"):
                known = ", ".join(sorted(_OPERATORS))
                raise Unsupported(
                    f"operator {node.op_type!r} cannot be differentiated here; known: {known}"
                )
            attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
            self._nodes.append((operator, tuple(node.input), tuple(node.output), attributes))
        self._constants = list(constants)
        for number, name in enumerate(self._constants):
            self.register_buffer(f"constant_{number}", constants[name])

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Tensors by input name to tensors by output name."""
        known: dict[str, Any] = {
            name: getattr(self, f"constant_{number}") for number, name in enumerate(self._constants)
        }
        known |= inputs
        known[""] = None
        for operator, sources, targets, attributes in self._nodes:
            result = operator([known[name] for name in sources], attributes)
            if len(targets) == 1:
                known[targets[0]] = result
            else:
                known |= dict(zip(targets, result, strict=True))
        return {name: known[name] for name in self.outputs}


def _tensor(proto: onnx.TensorProto) -> Tensor:
    return torch.from_numpy(np.array(numpy_helper.to_array(proto)))


def _constant(attribute: onnx.AttributeProto) -> Tensor:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return _tensor(value)
    return torch.tensor(value)


def _axes(arguments: Sequence[Any], attributes: Attributes, rank: int) -> list[int]:
    """Axes of a reduction: an input since opset 18, an attribute before; all when absent."""
    if len(arguments) > 1 and arguments[1] is not None:
        return [int(axis) for axis in arguments[1]]
    return [int(axis) for axis in attributes.get("axes", range(rank))]


def _reduction(run: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def operator(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
        x = arguments[0]
        return run(x, _axes(arguments, attributes, x.ndim), bool(attributes.get("keepdims", 1)))

    return operator


def _elementwise(run: Callable[..., Tensor]) -> Operator:
    return lambda arguments, attributes: run(*arguments)


def _fold(run: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """Min, Max and Sum take any number of tensors."""

    def operator(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
        total: Tensor = arguments[0]
        for other in arguments[1:]:
            total = run(total, other)
        return total

    return operator


def _pads(attributes: Attributes, spatial: int) -> list[int]:
    """ONNX's begins and ends to torch's pairs, the last axis first."""
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise Unsupported("auto_pad other than NOTSET and VALID cannot be differentiated here")
    pads = [int(pad) for pad in attributes.get("pads", [0] * 2 * spatial)]
    return [pads[axis + side * spatial] for axis in reversed(range(spatial)) for side in (0, 1)]


def _conv(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
    x, weight = arguments[0], arguments[1]
    bias = arguments[2] if len(arguments) > 2 else None
    pads = _pads(attributes, x.ndim - 2)
    if any(pads):
        x = F.pad(x, pads)
    return F.conv2d(
        x,
        weight,
        bias,
        stride=tuple(attributes.get("strides", [1, 1])),
        dilation=tuple(attributes.get("dilations", [1, 1])),
        groups=int(attributes.get("group", 1)),
    )


def _average_pool(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
    if attributes.get("ceil_mode", 0):
        raise Unsupported("ceil_mode of AveragePool cannot be differentiated here")
    x, pads = arguments[0], _pads(attributes, 2)
    kernel = tuple(attributes["kernel_shape"])
    stride = tuple(attributes.get("strides", [1, 1]))
    pooled = F.avg_pool2d(F.pad(x, pads), kernel, stride)
    if any(pads) and not attributes.get("count_include_pad", 0):
        ones = F.pad(torch.ones_like(x[:1, :1]), pads)
        pooled = pooled / F.avg_pool2d(ones, kernel, stride)
    return pooled


def _max_pool(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
    x = F.pad(arguments[0], _pads(attributes, 2), value=-math.inf)
    return F.max_pool2d(
        x,
        tuple(attributes["kernel_shape"]),
        tuple(attributes.get("strides", [1, 1])),
        dilation=tuple(attributes.get("dilations", [1, 1])),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )


def _gemm(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
    a, b = arguments[0], arguments[1]
    a = a.t() if attributes.get("transA", 0) else a
    b = b.t() if attributes.get("transB", 0) else b
    product: Tensor = float(attributes.get("alpha", 1.0)) * (a @ b)
    if len(arguments) > 2 and arguments[2] is not None:
        product = product + float(attributes.get("beta", 1.0)) * arguments[2]
    return product


def _clip(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
    x = arguments[0]
    low = arguments[1] if len(arguments) > 1 else None
    high = arguments[2] if len(arguments) > 2 else None
    return torch.clamp(
        x,
        None if low is None else float(low),
        None if high is None else float(high),
    )


def _pad(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
    x, amounts = arguments[0], [int(pad) for pad in arguments[1]]
    mode = attributes.get("mode", b"constant")
    pairs = [amounts[axis + side * x.ndim] for axis in reversed(range(x.ndim)) for side in (0, 1)]
    if mode == b"constant":
        value = arguments[2] if len(arguments) > 2 and arguments[2] is not None else 0.0
        return F.pad(x, pairs, value=float(value))
    if any(pairs[4:]) or mode not in (b"edge", b"reflect"):
        raise Unsupported(f"Pad of mode {mode.decode()!r} like this cannot be differentiated here")
    return F.pad(x, pairs[:4], mode="replicate" if mode == b"edge" else "reflect")


def _slice(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
    x = arguments[0]
    starts, ends = arguments[1].tolist(), arguments[2].tolist()
    axes = arguments[3].tolist() if len(arguments) > 3 else list(range(len(starts)))
    steps = arguments[4].tolist() if len(arguments) > 4 else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        if step < 0 and end < -size:
            end = None  # ONNX: before the first
        rows = range(size)[start:end:step]
        x = x.index_select(axis, torch.tensor(rows, dtype=torch.int64))
    return x  # type: ignore[no-any-return]


def _reshape(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
    x, shape = arguments
    sizes = [int(size) for size in shape]
    if not attributes.get("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)  # type: ignore[no-any-return]


def _squeeze(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
    x = arguments[0]
    if len(arguments) > 1 or "axes" in attributes:
        return x.squeeze(tuple(_axes(arguments, attributes, x.ndim)))  # type: ignore[no-any-return]
    return x.squeeze()  # type: ignore[no-any-return]


def _unsqueeze(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
    x = arguments[0]
    axes = _axes(arguments, attributes, x.ndim)
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x  # type: ignore[no-any-return]


def _expand(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
    x, shape = arguments
    # ONNX broadcasts both ways, so a size of 1 leaves the tensor's own.
    sizes = np.broadcast_shapes(tuple(x.shape), tuple(int(size) for size in shape))
    return x.expand(sizes)  # type: ignore[no-any-return]


def _gather(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
    x, index = arguments
    axis = int(attributes.get("axis", 0)) % x.ndim
    taken = x.index_select(axis, index.reshape(-1) % x.shape[axis])
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    return taken.reshape(shape)  # type: ignore[no-any-return]


def _batch_norm(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
    x, scale, bias, mean, variance = arguments
    return F.batch_norm(x, mean, variance, scale, bias, eps=float(attributes.get("epsilon", 1e-5)))


def _layer_norm(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
    x, scale = arguments[0], arguments[1]
    axis = int(attributes.get("axis", -1)) % x.ndim
    bias = arguments[2] if len(arguments) > 2 else None
    epsilon = float(attributes.get("epsilon", 1e-5))
    return F.layer_norm(x, tuple(x.shape[axis:]), scale, bias, epsilon)


def _shape(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
    shape = arguments[0].shape
    return torch.tensor(shape[attributes.get("start", 0) : attributes.get("end", len(shape))])


def _cast(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
    kind = onnx.helper.tensor_dtype_to_np_dtype(attributes["to"])
    return arguments[0].to(torch.from_numpy(np.zeros(0, kind)).dtype)  # type: ignore[no-any-return]


def _with_identity(run: Callable[[Tensor], Tensor]) -> Operator:
    return lambda arguments, attributes: with_surrogate(arguments[0], run, lambda x: x)


def _axis(run: Callable[[Tensor, int], Tensor], default: int) -> Operator:
    return lambda arguments, attributes: run(arguments[0], int(attributes.get("axis", default)))


def _comparison(sign: float, strict: bool) -> Operator:
    """A comparison as 0 and 1, passed by gradients as a sigmoid that is as wide as its argument.

    A step hides nothing: whoever knows the graph slides over it (BPDA, Athalye et al. 2018).
    """

    def operator(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
        apart: Tensor = sign * (arguments[0] - arguments[1])
        if not arguments[0].is_floating_point():
            return ((apart > 0) if strict else (apart >= 0)).float()
        width = float(apart.detach().std(unbiased=False)) / 4 + 1e-6
        return with_surrogate(
            apart,
            lambda v: ((v > 0) if strict else (v >= 0)).float(),
            lambda v: torch.sigmoid(v / width),
        )

    return operator


def _where(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
    condition, yes, no = arguments
    if condition.dtype == torch.bool:
        return torch.where(condition, yes, no)
    # A comparison of ours: both sides matter to whoever slides over it.
    return condition * yes + (1 - condition) * no  # type: ignore[no-any-return]


def _arg_max(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
    axis, keep = int(attributes.get("axis", 0)), bool(attributes.get("keepdims", 1))
    return arguments[0].argmax(dim=axis, keepdim=keep)  # type: ignore[no-any-return]


def _gather_elements(arguments: Sequence[Any], attributes: Attributes) -> Tensor:
    x, index = arguments
    axis = int(attributes.get("axis", 0)) % x.ndim
    return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index))  # type: ignore[no-any-return]


def _top_k(arguments: Sequence[Any], attributes: Attributes) -> tuple[Tensor, Tensor]:
    x, count = arguments[0], int(arguments[1].reshape(-1)[0])
    largest, ordered = bool(attributes.get("largest", 1)), bool(attributes.get("sorted", 1))
    values, indices = x.topk(count, int(attributes.get("axis", -1)), largest, ordered)
    return values, indices


_OPERATORS: Mapping[str, Operator] = {
    "Abs": _elementwise(torch.abs),
    "Add": _elementwise(torch.add),
    "ArgMax": _arg_max,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda arguments, attributes: torch.cat(list(arguments), int(attributes["axis"])),
    "Conv": _conv,
    "Cos": _elementwise(torch.cos),
    "Div": _elementwise(torch.div),
    "Dropout": lambda arguments, attributes: arguments[0],
    # Exact, and without a gradient: of a one-hot vote what is left is what stands beside it.
    "Equal": lambda arguments, attributes: (arguments[0] == arguments[1]).float(),
    "Erf": _elementwise(torch.erf),
    "Exp": _elementwise(torch.exp),
    "Expand": _expand,
    "Flatten": _axis(lambda x, axis: x.reshape(math.prod(x.shape[:axis]), -1), 1),
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Gelu": lambda arguments, attributes: F.gelu(
        arguments[0], approximate=attributes.get("approximate", b"none").decode()
    ),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda arguments, attributes: arguments[0].mean((2, 3), keepdim=True),
    "Greater": _comparison(1.0, strict=True),
    "GreaterOrEqual": _comparison(1.0, strict=False),
    "HardSigmoid": lambda arguments, attributes: torch.clamp(
        arguments[0] * attributes.get("alpha", 0.2) + attributes.get("beta", 0.5), 0.0, 1.0
    ),
    "HardSwish": _elementwise(F.hardswish),
    "Identity": _elementwise(lambda x: x),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda arguments, attributes: F.leaky_relu(
        arguments[0], attributes.get("alpha", 0.01)
    ),
    "Less": _comparison(-1.0, strict=True),
    "LessOrEqual": _comparison(-1.0, strict=False),
    "Log": _elementwise(torch.log),
    "LogSoftmax": _axis(torch.log_softmax, -1),
    "MatMul": _elementwise(torch.matmul),
    "Max": _fold(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _fold(torch.minimum),
    "Mul": _elementwise(torch.mul),
    "Neg": _elementwise(torch.neg),
    "Pad": _pad,
    "Pow": _elementwise(torch.pow),
    "ReduceL1": _reduction(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: (x * x).sum(axes, keepdim=keep).sqrt()),
    "ReduceLogSumExp": _reduction(lambda x, axes, keep: x.logsumexp(axes, keepdim=keep)),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMean": _reduction(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "Relu": _elementwise(torch.relu),
    "Reshape": _reshape,
    "Round": _with_identity(torch.round),
    "Shape": _shape,
    "Sigmoid": _elementwise(torch.sigmoid),
    "Sign": _with_identity(torch.sign),
    "Slice": _slice,
    "Softmax": _axis(torch.softmax, -1),
    "Sqrt": _elementwise(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _elementwise(torch.sub),
    "Sum": _fold(torch.add),
    "Tanh": _elementwise(torch.tanh),
    "TopK": _top_k,
    "Transpose": lambda arguments, attributes: arguments[0].permute(*attributes["perm"]),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
