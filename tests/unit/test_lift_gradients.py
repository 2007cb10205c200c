"""Gradients of the lift: those of the function where it has one, the declared ones elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from firewall.lift import OnnxModule

RANDOM = np.random.default_rng(0)
#: No ties, and away from the kinks at 0.
X = torch.from_numpy(
    RANDOM.permutation(np.linspace(-2, 2, 2 * 3 * 4 * 5)).reshape(2, 3, 4, 5) + 0.003
)


def model(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, np.ndarray] | None = None,
    *,
    kind: int = TensorProto.DOUBLE,
    opset: int = 18,
) -> OnnxModule:
    """A graph from `x` to `y`."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, None)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return OnnxModule(proto.SerializeToString())


def random(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape)


DIFFERENTIABLE = [
    ("Conv", {"pads": [1, 0, 0, 1], "strides": [2, 1]}, [random(2, 3, 2, 3), random(2)]),
    ("ConvTranspose", {"strides": [2, 2], "pads": [1, 0, 0, 1]}, [random(3, 2, 2, 3), random(2)]),
    ("AveragePool", {"kernel_shape": [2, 3], "pads": [1, 0, 0, 1], "ceil_mode": 1}, []),
    ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, []),
    ("LpPool", {"kernel_shape": [2, 2], "p": 3}, []),
    ("GlobalLpPool", {}, []),
    ("BatchNormalization", {}, [random(3), random(3), random(3), random(3) ** 2 + 0.5]),
    ("InstanceNormalization", {}, [random(3), random(3)]),
    ("GroupNormalization", {"num_groups": 3}, [random(3), random(3)]),
    ("LayerNormalization", {"axis": 2}, [random(4, 5), random(4, 5)]),
    ("LpNormalization", {"axis": 1}, []),
    ("LRN", {"size": 3, "alpha": 0.3}, []),
    ("MeanVarianceNormalization", {}, []),
    ("Softmax", {"axis": 1}, []),
    ("LogSoftmax", {}, []),
    ("ReduceL2", {}, [np.array([1, 2])]),
    ("ReduceProd", {"keepdims": 0}, [np.array([3])]),
    ("ReduceLogSumExp", {}, [np.array([1])]),
    ("CumSum", {"reverse": 1, "exclusive": 1}, [np.array(1)]),
    ("Gather", {"axis": 3}, [np.array([[0, -1], [2, 2]])]),
    ("Slice", {}, [np.array([-1]), np.array([-9]), np.array([3]), np.array([-2])]),
    ("Pad", {"mode": "reflect"}, [np.array([0, 0, 1, 2, 0, 0, 0, 1])]),
    ("DepthToSpace", {"blocksize": 1}, []),
    ("Tile", {}, [np.array([1, 2, 1, 2])]),
    ("Gelu", {}, []),
    ("Celu", {"alpha": 0.7}, []),
    ("Selu", {}, []),
    ("Mish", {}, []),
    ("HardSwish", {}, []),
    ("PRelu", {}, [random(3, 1, 1)]),
    ("Pow", {}, [np.array(3.0)]),
    ("Mod", {"fmod": 1}, [np.array(0.77)]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("operator", "attributes", "constants"), DIFFERENTIABLE, ids=[one[0] for one in DIFFERENTIABLE]
)
def test_gradient_is_that_of_finite_differences(
    operator: str, attributes: dict[str, object], constants: list[np.ndarray]
) -> None:
    named = {f"c{index}": value for index, value in enumerate(constants)}
    node = helper.make_node(operator, ["x", *named], ["y"], **attributes)
    module = model([node], named, opset=20)
    x = X[:1].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda value: module(x=value)["y"], (x,))


@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])
def test_gradient_of_resize_is_that_of_finite_differences(mode: str) -> None:
    scales = np.array([1, 1, 1.5, 0.6], np.float32)
    module = model([helper.make_node("Resize", ["x", "", "s"], ["y"], mode=mode)], {"s": scales})
    x = X[:1].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda value: module(x=value)["y"], (x,))


def gradient(module: OnnxModule, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_(True)
    y = module(x=x)["y"]
    with torch.no_grad():
        assert torch.equal(module(x=x)["y"].to(y.dtype), y), "gradients change no value"
    (found,) = torch.autograd.grad(y.sum(), x)
    return found


@pytest.mark.parametrize("operator", ["Round", "Floor", "Ceil", "Sign"])
def test_rounding_passes_gradients_straight_through(operator: str) -> None:
    found = gradient(model([helper.make_node(operator, ["x"], ["y"])]), X)
    assert torch.equal(found, torch.ones_like(X))


def test_a_cast_to_bytes_and_back_passes_gradients_straight_through() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("Transpose", ["bytes"], ["turned"], perm=[3, 2, 1, 0]),
        helper.make_node("Cast", ["turned"], ["y"], to=TensorProto.DOUBLE),
    ]
    found = gradient(model(nodes), X.abs() * 40)
    assert torch.equal(found, torch.ones_like(X))


def test_bytes_given_as_floats_have_a_gradient_and_the_values_of_bytes() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["y"]),
    ]
    module = model(nodes, {"scale": np.array(0.5, np.float32)}, kind=TensorProto.UINT8)
    pixels = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 2, 2)
    assert torch.equal(module(x=pixels)["y"], pixels.float() / 2)
    assert torch.equal(gradient(module, pixels.float()), torch.full(pixels.shape, 0.5))


def test_integers_divide_as_integers_where_they_stand_in_for_floats() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Div", ["whole", "two"], ["half"]),
        helper.make_node("Cast", ["half"], ["rounded"], to=TensorProto.DOUBLE),
        helper.make_node("Add", ["rounded", "x"], ["y"]),
    ]
    module = model(nodes, {"two": np.array(2)})
    x = torch.tensor([3.7, -3.7], dtype=torch.float64, requires_grad=True)
    assert module(x=x)["y"].tolist() == [1 + 3.7, -1 - 3.7]


def test_quantisation_passes_gradients_where_it_does_not_saturate() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("MaxPool", ["q"], ["pooled"], kernel_shape=[1, 1]),
        helper.make_node("DequantizeLinear", ["pooled", "scale", "zero"], ["y"]),
    ]
    constants = {"scale": np.array(0.01, np.float32), "zero": np.array(5, np.int8)}
    x = X.float()
    found = gradient(model(nodes, constants, kind=TensorProto.FLOAT), x)
    inside = (x / 0.01 + 5 >= -128) & (x / 0.01 + 5 <= 127)
    assert torch.allclose(found, inside.float())


def test_dynamic_quantisation_has_about_the_gradient_of_the_product() -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["y"]),
    ]
    weights = RANDOM.integers(-100, 100, (6, 4)).astype(np.int8)
    x = torch.from_numpy(random(5, 6)).float()
    found = gradient(model(nodes, {"w": weights}, kind=TensorProto.FLOAT), x)
    expected = torch.from_numpy(weights).float().sum(1).expand_as(x)
    inner = (x < x.max()) & (x > x.min())
    assert torch.allclose(found[inner], expected[inner], rtol=1e-3)


@pytest.mark.parametrize(
    ("logic", "sign"), [("And", 1.0), ("Or", 1.0), ("Xor", None), ("Not", -1.0)]
)
def test_a_comparison_is_a_slope_behind_logic_and_where(logic: str, sign: float | None) -> None:
    second = ["other"] if logic != "Not" else []
    nodes = [
        helper.make_node("Greater", ["x", "level"], ["above"]),
        helper.make_node("Less", ["level", "x"], ["other"]),
        helper.make_node(logic, ["above", *second], ["chosen"]),
        helper.make_node("Where", ["chosen", "big", "small"], ["y"]),
    ]
    constants = {"level": np.array(0.1), "big": np.array(3.0), "small": np.array(1.0)}
    module = model(nodes, constants)
    with torch.no_grad():
        y = module(x=X)["y"]
    expected = {"And": X > 0.1, "Or": X > 0.1, "Xor": X > 99, "Not": X <= 0.1}[logic]
    assert torch.equal(y, torch.where(expected, 3.0, 1.0).double())
    found = gradient(module, X)
    assert torch.isfinite(found).all()
    if sign is not None:
        assert (sign * found >= 0).all()
        assert (sign * found).max() > 0


def test_where_keeps_infinities_of_the_side_that_is_not_chosen_out() -> None:
    nodes = [
        helper.make_node("Greater", ["x", "level"], ["above"]),
        helper.make_node("Where", ["above", "x", "never"], ["kept"]),
        helper.make_node("Softmax", ["kept"], ["y"]),
    ]
    module = model(nodes, {"level": np.array(-0.5), "never": np.array(-np.inf)})
    x = X.clone().requires_grad_(True)
    y = module(x=x)["y"]
    expected = torch.softmax(torch.where(X > -0.5, X, -torch.inf), -1)
    assert torch.allclose(y, expected)
    (found,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.isfinite(found).all()


def test_without_gradients_comparisons_are_booleans() -> None:
    module = model([helper.make_node("Less", ["x", "x"], ["y"])])
    with torch.no_grad():
        assert module(x=X)["y"].dtype == torch.bool
