"""What operators of different opsets give, against onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from firewall.errors import Unsupported
from firewall.lift import OnnxModule, unsupported
from firewall.lift.graph import read

Array = npt.NDArray[Any]


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def wholes(*values: int) -> Array:
    return np.array(values, np.int64)


def scalar(value: float, dtype: Any = np.float32) -> Array:
    return np.array(value, dtype)


class Case(NamedTuple):
    opset: int
    operator: str
    #: The first is an input of the graph, the others are initializers; None is an absent one.
    inputs: Sequence[Array | None]
    attributes: dict[str, Any] = {}  # noqa: RUF012
    outputs: int = 1


def model(case: Case) -> onnx.ModelProto:
    names = ["" if one is None else f"i{index}" for index, one in enumerate(case.inputs)]
    outputs = [f"o{index}" for index in range(case.outputs)]
    node = helper.make_node(case.operator, names, outputs, **case.attributes)
    first = case.inputs[0]
    assert first is not None
    entry = helper.make_tensor_value_info(
        "i0", helper.np_dtype_to_tensor_dtype(first.dtype), first.shape
    )
    graph = helper.make_graph(
        [node],
        "case",
        [entry],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [
            numpy_helper.from_array(one, name)
            for name, one in zip(names[1:], case.inputs[1:], strict=True)
            if one is not None
        ],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=8
    )


def served(proto: onnx.ModelProto, feed: dict[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    answers: list[Array] = session.run(None, feed)
    return answers


def lifted(proto: onnx.ModelProto, feed: dict[str, Array]) -> list[torch.Tensor]:
    module = OnnxModule(proto.SerializeToString())
    with torch.no_grad():
        return list(module(**{name: torch.from_numpy(one) for name, one in feed.items()}).values())


X = floats(2, 3, 4, 5)
IMAGE = floats(1, 2, 7, 9)
WEIGHTS = floats(4, 2, 3, 3, seed=1)
EMPTY = np.zeros(0, np.float32)
SCALES = np.array([1, 1, 2, 1.5], np.float32)
SMALLER = np.array([1, 1, 0.6, 0.4], np.float32)
BATCH = [floats(3, seed=index) for index in (1, 2, 3)] + [np.abs(floats(3, seed=4)) + 0.5]

CASES = [
    # Before opset 13 these flatten from the axis on, which is 1 by default.
    *(Case(11, name, [X]) for name in ("Softmax", "LogSoftmax", "Hardmax")),
    *(Case(11, name, [X], {"axis": 2}) for name in ("Softmax", "LogSoftmax", "Hardmax")),
    *(Case(13, name, [X]) for name in ("Softmax", "LogSoftmax", "Hardmax")),
    *(Case(13, name, [X], {"axis": 1}) for name in ("Softmax", "LogSoftmax", "Hardmax")),
    Case(14, "Div", [np.array([-7, 7, -8, 9], np.int32), np.array([2, -2, 3, 4], np.int32)]),
    Case(13, "Mod", [np.array([-7, 7, -8, 9], np.int64), np.array([2, -2, 3, -4], np.int64)]),
    Case(13, "Mod", [floats(6), floats(6, seed=1)], {"fmod": 1}),
    Case(6, "Clip", [X], {"min": -0.5, "max": 0.25}),
    Case(6, "Clip", [X], {"max": 0.25}),
    Case(11, "Clip", [X, scalar(-0.5), scalar(0.25)]),
    Case(13, "Clip", [X, None, scalar(0.25)]),
    Case(13, "Clip", [wholes(-5, 0, 7), scalar(-1, np.int64), scalar(3, np.int64)]),
    Case(2, "Pad", [X], {"pads": [0, 0, 1, 2, 0, 1, 0, 3], "value": 1.5}),
    Case(2, "Pad", [X], {"pads": [0, 0, 1, 2, 0, 0, 2, 3], "mode": "reflect"}),
    Case(11, "Pad", [X, wholes(0, 1, -1, 2, 0, 1, 0, 3), scalar(2.0)]),
    Case(13, "Pad", [X, wholes(0, 1, 1, 2, 0, 1, 2, 3)], {"mode": "edge"}),
    Case(18, "Pad", [X, wholes(1, 2, 2, 3), None, wholes(-2, -1)], {"mode": "reflect"}),
    Case(19, "Pad", [X, wholes(0, 0, 1, 2, 0, 0, 2, 3)], {"mode": "wrap"}),
    Case(9, "Slice", [X], {"starts": [1, -3], "ends": [4, 100], "axes": [2, 3]}),
    Case(10, "Slice", [X, wholes(0, 0), wholes(2, 2)]),
    Case(13, "Slice", [X, wholes(-1, 100), wholes(-100, 0), wholes(3, -2), wholes(-2, -1)]),
    Case(11, "Unsqueeze", [X], {"axes": [0, 3]}),
    Case(13, "Unsqueeze", [X, wholes(-1, 0)]),
    Case(11, "Squeeze", [floats(1, 3, 1)], {"axes": [0]}),
    Case(13, "Squeeze", [floats(1, 3, 1), wholes(-1)]),
    Case(13, "Squeeze", [floats(1, 3, 1)]),
    Case(11, "ReduceSum", [X], {"axes": [1, -1], "keepdims": 0}),
    Case(13, "ReduceSum", [X, wholes(1, -1)], {"keepdims": 0}),
    Case(13, "ReduceSum", [X], {"noop_with_empty_axes": 1}),
    Case(13, "ReduceMean", [X], {"axes": [2, 3]}),
    Case(18, "ReduceMean", [X, wholes(2, 3)]),
    Case(18, "ReduceMax", [X]),
    Case(18, "ReduceL1", [X, wholes(1)]),
    Case(18, "ReduceLogSumExp", [X, wholes(1)]),
    Case(13, "ReduceProd", [X], {"axes": [1, 2]}),
    Case(11, "Split", [X], {"axis": 3, "split": [2, 3]}, 2),
    Case(11, "Split", [X], {"axis": 2}, 2),
    Case(13, "Split", [X, wholes(1, 4)], {"axis": 3}, 2),
    Case(18, "Split", [X], {"axis": 3, "num_outputs": 3}, 3),
    Case(9, "TopK", [X], {"k": 2}, 2),
    Case(11, "TopK", [X, wholes(3)], {"axis": 2, "largest": 0}, 2),
    Case(11, "TopK", [wholes(3, 1, 3, 2, 3), wholes(2)], {}, 2),
    Case(7, "Dropout", [X], {"ratio": 0.5}),
    Case(12, "Dropout", [X, scalar(0.5)], {}, 2),
    Case(13, "Dropout", [X, scalar(0.0), scalar(True, np.bool_)], {}, 2),
    Case(7, "Upsample", [X], {"scales": [1.0, 1.0, 2.0, 3.0]}),
    Case(9, "Upsample", [X, SCALES]),
    Case(9, "Upsample", [X, SCALES], {"mode": "linear"}),
    Case(10, "Resize", [X, SCALES]),
    Case(10, "Resize", [X, SMALLER], {"mode": "linear"}),
    *(
        Case(13, "Resize", [IMAGE, None, scales],
             {"mode": mode, "coordinate_transformation_mode": coordinates})
        for mode in ("nearest", "linear", "cubic")
        for coordinates in ("half_pixel", "pytorch_half_pixel", "asymmetric")
        for scales in (SCALES, SMALLER)
    ),
    *(Case(11, "Resize", [IMAGE, EMPTY, SCALES], {"nearest_mode": mode})
      for mode in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")),
    Case(11, "Resize", [IMAGE, EMPTY, EMPTY, wholes(1, 2, 3, 4)], {"mode": "linear"}),
    Case(11, "Resize", [IMAGE, np.array([0, 0, 0.2, 0.3, 1, 1, 0.9, 1.2], np.float32), EMPTY,
                        wholes(1, 2, 5, 5)],
         {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize",
          "extrapolation_value": 4.0}),
    *(
        Case(13, "Resize", [IMAGE, None, scales],
             {"mode": mode, "coordinate_transformation_mode": "align_corners"})
        for mode in ("nearest", "linear", "cubic")
        for scales in (np.array([1, 1, 2, 3], np.float32), np.array([1, 1, 3, 1 / 3], np.float32))
    ),
    Case(13, "Resize", [IMAGE, None, SCALES], {"mode": "cubic", "exclude_outside": 1}),
    Case(18, "Resize", [IMAGE, None, SMALLER], {"mode": "linear", "antialias": 1}),
    Case(19, "Resize", [IMAGE, None, None, wholes(4, 5)],
         {"mode": "linear", "axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"}),
    Case(7, "Reshape", [X, wholes(0, -1, 5)]),
    Case(14, "Reshape", [floats(0, 3), wholes(3, 0)], {"allowzero": 1}),
    Case(7, "BatchNormalization", [X, *BATCH]),
    Case(9, "BatchNormalization", [X, *BATCH], {"epsilon": 0.1}),
    Case(15, "BatchNormalization", [X, *BATCH]),
    Case(13, "Cast", [np.array([-1.5, 0.0, 2.7], np.float32)], {"to": TensorProto.BOOL}),
    Case(13, "Cast", [np.array([-1.5, 0.0, 2.7], np.float32)], {"to": TensorProto.INT8}),
    Case(13, "Cast", [np.array([300, -1], np.int32)], {"to": TensorProto.UINT8}),
    Case(7, "Gemm", [floats(3, 4), floats(5, 4, seed=1), floats(5, seed=2)],
         {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    Case(11, "Gemm", [floats(4, 3), floats(4, 5, seed=1)], {"transA": 1}),
    Case(11, "Flatten", [X], {"axis": -1}),
    Case(11, "Flatten", [X], {"axis": 0}),
    *(Case(13, name, [np.array([[1, 3, 3], [0, 0, 2]], np.float32)],
           {"axis": 1, "select_last_index": last})
      for name in ("ArgMax", "ArgMin") for last in (0, 1)),
    Case(14, "CumSum", [X, scalar(2, np.int64)], {"exclusive": 1, "reverse": 1}),
    *(Case(19, "AveragePool", [IMAGE],
           {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 1, 1],
            "ceil_mode": ceil, "count_include_pad": include})
      for ceil in (0, 1) for include in (0, 1)),
    Case(10, "AveragePool", [IMAGE], {"kernel_shape": [3, 3], "strides": [2, 2],
                                      "auto_pad": "SAME_UPPER"}),
    Case(19, "AveragePool", [IMAGE], {"kernel_shape": [2, 3], "dilations": [2, 2]}),
    *(Case(12, "MaxPool", [IMAGE],
           {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 1, 1], "ceil_mode": ceil}, 2)
      for ceil in (0, 1)),
    Case(12, "MaxPool", [IMAGE], {"kernel_shape": [2, 2], "dilations": [2, 3]}),
    Case(12, "MaxPool", [IMAGE], {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"}),
    Case(8, "MaxPool", [floats(1, 2, 9)], {"kernel_shape": [3], "strides": [2]}),
    Case(11, "LpPool", [IMAGE], {"kernel_shape": [3, 2], "p": 3, "pads": [1, 0, 1, 1]}),
    Case(2, "GlobalLpPool", [IMAGE], {"p": 3}),
    Case(9, "GlobalMaxPool", [IMAGE]),
    *(Case(11, "Conv", [IMAGE, WEIGHTS],
           {"auto_pad": pad, "strides": [2, 2]}) for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")),
    Case(11, "Conv", [IMAGE, WEIGHTS, floats(4, seed=2)],
         {"pads": [0, 1, 2, 0], "dilations": [1, 2]}),
    Case(11, "Conv", [floats(1, 2, 9), floats(2, 1, 3, seed=1)], {"group": 2, "pads": [1, 0]}),
    Case(11, "Conv", [floats(1, 2, 4, 5, 6), floats(3, 2, 2, 3, 2, seed=1)]),
    Case(11, "ConvTranspose", [IMAGE, floats(2, 3, 3, 3, seed=1), floats(3, seed=2)],
         {"strides": [2, 3], "pads": [1, 0, 1, 2], "output_padding": [1, 0]}),
    Case(11, "ConvTranspose", [IMAGE, floats(2, 3, 3, 3, seed=1)],
         {"strides": [2, 2], "output_shape": [14, 18], "auto_pad": "SAME_UPPER"}),
    Case(13, "LRN", [floats(1, 7, 3, 3)], {"size": 5, "alpha": 0.3, "bias": 2.0}),
    Case(6, "InstanceNormalization", [X, floats(3, seed=1), floats(3, seed=2)]),
    Case(17, "LayerNormalization", [X, floats(4, 5, seed=1), floats(4, 5, seed=2)],
         {"axis": 2}, 1),
    Case(17, "LayerNormalization", [X, floats(5, seed=1)], {}, 3),
    Case(18, "GroupNormalization", [floats(2, 4, 3, 3), floats(2, seed=1), floats(2, seed=2)],
         {"num_groups": 2}),
    Case(21, "GroupNormalization", [floats(2, 4, 3, 3), floats(4, seed=1), floats(4, seed=2)],
         {"num_groups": 2}),
    Case(11, "DepthToSpace", [floats(1, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}),
    Case(13, "SpaceToDepth", [floats(1, 2, 4, 6)], {"blocksize": 2}),
    Case(13, "Gather", [X, np.array([[0, -1], [1, 1]], np.int64)], {"axis": 2}),
    Case(13, "GatherElements", [floats(3, 3), np.array([[0, -1, 2]], np.int64)], {"axis": 0}),
    Case(16, "ScatterElements", [floats(3, 3), np.array([[0, -1, 2]], np.int64), floats(1, 3)],
         {"reduction": "add"}),
    Case(11, "OneHot", [wholes(0, -1, 5), scalar(3, np.int64), np.array([2, 7], np.float32)]),
    Case(10, "ThresholdedRelu", [X], {"alpha": 0.3}),
    Case(7, "PRelu", [X, floats(3, 1, 1, seed=1)]),
    Case(12, "Pow", [wholes(1, 2, 3), np.array([2, 0.5, 3], np.float32)]),
    Case(9, "MeanVarianceNormalization", [X]),
    Case(10, "MatMulInteger", [np.array([[1, 200], [3, 4]], np.uint8),
                               np.array([[5, 6], [7, 8]], np.uint8), scalar(3, np.uint8),
                               scalar(1, np.uint8)]),
    Case(10, "ConvInteger", [np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4),
                             np.full((1, 1, 2, 2), 9, np.uint8), scalar(7, np.uint8)],
         {"pads": [1, 1, 1, 1]}),
    Case(10, "QLinearConv",
         [np.arange(32, dtype=np.uint8).reshape(1, 2, 4, 4) * 7, scalar(0.02),
          scalar(120, np.uint8),
          np.arange(-18, 18).astype(np.int8).reshape(2, 2, 3, 3), np.array([0.1, 0.2], np.float32),
          np.zeros(2, np.int8), scalar(0.3), scalar(110, np.uint8), np.array([9, -9], np.int32)],
         {"pads": [1, 1, 1, 1]}),
    Case(13, "QuantizeLinear", [X, np.array([0.1, 0.02, 0.3], np.float32),
                                np.array([3, -4, 5], np.int8)], {"axis": 1}),
    Case(11, "DynamicQuantizeLinear", [X], {}, 3),
    Case(23, "RMSNormalization", [X, floats(5, seed=1)]),
    Case(20, "Gelu", [X], {"approximate": "tanh"}),
]  # fmt: skip


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{one.operator}-{one.opset}-{index}" for index, one in enumerate(CASES)]
)
def test_operator_of_an_opset_is_what_onnxruntime_has(case: Case) -> None:
    proto = model(case)
    assert case.inputs[0] is not None
    feed = {"i0": case.inputs[0]}
    for found, wanted in zip(lifted(proto, feed), served(proto, feed), strict=True):
        assert found.numpy().dtype == wanted.dtype
        assert found.shape == wanted.shape
        if wanted.dtype.kind == "f":
            assert np.allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-5, equal_nan=True)
        else:
            assert (found.numpy() == wanted).all()


def test_align_corners_to_a_size_that_is_not_whole_is_refused() -> None:
    # The reference of ONNX and onnxruntime disagree on it.
    proto = model(
        Case(13, "Resize", [IMAGE, None, SCALES],
             {"mode": "linear", "coordinate_transformation_mode": "align_corners"})
    )  # fmt: skip
    with pytest.raises(Unsupported, match=r"'Resize' \(align_corners by scales"):
        lifted(proto, {"i0": IMAGE})


def test_inputs_before_opset_7_broadcast_from_an_axis_on() -> None:
    # onnxruntime runs opsets from 7 on.
    proto = model(Case(6, "Add", [X, floats(3, seed=1)], {"broadcast": 1, "axis": 1}))
    [found] = lifted(proto, {"i0": X})
    assert np.allclose(found.numpy(), X + floats(3, seed=1)[:, None, None])


def test_shape_of_opset_1_is_an_attribute() -> None:
    [found] = lifted(model(Case(1, "Reshape", [X], {"shape": [0, -1]})), {"i0": X})
    assert found.shape == (2, 60)


def test_cast_of_opset_1_names_the_type() -> None:
    [found] = lifted(model(Case(1, "Cast", [X], {"to": "INT32"})), {"i0": X})
    assert found.dtype == torch.int32


def graph_model(
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[str],
    *,
    kind: int = TensorProto.FLOAT,
    opset: int = 18,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
    constants: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """A model with the input `x` of any shape."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [onnx.helper.make_tensor_value_info("x", kind, None)],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        constants,
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(one, 1) for one in domains)]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=9)


def test_all_missing_operators_are_named_first_and_at_once() -> None:
    nodes = [
        helper.make_node("FusedConv", ["x"], ["a"], domain="com.microsoft"),
        helper.make_node("NonMaxSuppression", ["a", "a"], ["b"]),
        helper.make_node("FusedConv", ["b"], ["c"], domain="com.microsoft"),
        helper.make_node("BatchNormalization", ["c"] * 5, ["d", "e", "f", "g", "h"]),
        helper.make_node("Pad", ["d", "x"], ["i"], mode="strange"),
    ]
    proto = graph_model(nodes, ["i"], opset=13, domains=["com.microsoft"])
    assert unsupported(proto) == [
        "'FusedConv' (com.microsoft)",
        "'NonMaxSuppression'",
        "'BatchNormalization' (training mode)",
        "'Pad' (mode strange)",
    ]
    with pytest.raises(Unsupported) as caught:
        OnnxModule(proto.SerializeToString())
    assert str(caught.value) == (
        "operators not supported by the lift: 'FusedConv' (com.microsoft), 'NonMaxSuppression', "
        "'BatchNormalization' (training mode), 'Pad' (mode strange); re-export the model with "
        "standard operators"
    )


def test_nodes_that_no_output_needs_are_left_out() -> None:
    nodes = [
        helper.make_node("Unknown", ["x"], ["unused"]),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    assert len(read(graph_model(nodes, ["y"])).steps) == 1


def test_what_follows_from_constants_is_computed_once() -> None:
    nodes = [
        helper.make_node("Constant", [], ["a"], value_float=2.0),
        helper.make_node("Exp", ["a"], ["b"]),
        helper.make_node("Mul", ["x", "b"], ["y"]),
    ]
    graph = read(graph_model(nodes, ["y"]))
    assert [step.label for step in graph.steps] == ["'Mul'"]
    assert list(graph.constants) == ["b"]


def branch(name: str, operator: str) -> onnx.GraphProto:
    nodes = [
        helper.make_node(operator, ["x"], ["inner"]),
        helper.make_node("Neg", ["inner"], ["result"]),
    ]
    return helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name="result")])


@pytest.mark.parametrize(("condition", "expected"), [(True, "Exp"), (False, "Abs")])
def test_an_if_whose_condition_is_known_becomes_its_branch(condition: bool, expected: str) -> None:
    nodes = [
        helper.make_node("If", ["flag"], ["y"], then_branch=branch("a", "Exp"),
                         else_branch=branch("b", "Abs")),
        helper.make_node("If", ["flag"], ["z"], then_branch=branch("a", "Exp"),
                         else_branch=branch("b", "Abs")),
    ]  # fmt: skip
    flag = numpy_helper.from_array(np.array(condition), "flag")
    proto = graph_model(nodes, ["y", "z"], constants=[flag])
    x = floats(3)
    wanted = -np.exp(x) if expected == "Exp" else -np.abs(x)
    for found in lifted(proto, {"x": x}):
        assert np.allclose(found.numpy(), wanted)


def test_an_if_that_depends_on_an_input_is_refused() -> None:
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["flag"], to=TensorProto.BOOL),
        helper.make_node("If", ["flag"], ["y"], then_branch=branch("a", "Exp"),
                         else_branch=branch("b", "Abs")),
    ]  # fmt: skip
    [missing] = unsupported(graph_model(nodes, ["y"]))
    assert missing == "'If' (a condition that is not known when the graph is read)"


def test_local_functions_are_inlined() -> None:
    function = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    node = helper.make_node("Twice", ["x"], ["y"], domain="local")
    proto = graph_model([node], ["y"], functions=[function], domains=["local"])
    [found] = lifted(proto, {"x": floats(3)})
    assert np.allclose(found.numpy(), 2 * floats(3))


def test_nodes_need_not_be_sorted() -> None:
    nodes = [helper.make_node("Neg", ["a"], ["y"]), helper.make_node("Exp", ["x"], ["a"])]
    [found] = lifted(graph_model(nodes, ["y"]), {"x": floats(3)})
    assert np.allclose(found.numpy(), -np.exp(floats(3)))


def test_an_opset_newer_than_the_lift_is_refused() -> None:
    proto = graph_model([helper.make_node("Relu", ["x"], ["y"])], ["y"], opset=99)
    with pytest.raises(Unsupported, match="opset 99, newer than"):
        OnnxModule(proto.SerializeToString())


def test_half_precision_runs_on_a_cpu() -> None:
    weights = numpy_helper.from_array(WEIGHTS.astype(np.float16), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("LpNormalization", ["a"], ["b"], axis=1),
        helper.make_node("Softmax", ["b"], ["y"], axis=1),
    ]
    proto = graph_model(nodes, ["y"], kind=TensorProto.FLOAT16, constants=[weights])
    x = IMAGE.astype(np.float16)
    [found] = lifted(proto, {"x": x})
    [wanted] = served(proto, {"x": x})
    assert found.dtype == torch.float16
    assert np.allclose(found.float().numpy(), wanted.astype(np.float32), atol=2e-3)


def test_a_shape_that_is_computed_follows_the_batch() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Constant", [], ["zero"], value_ints=[0]),
        helper.make_node("Gather", ["shape", "zero"], ["rows"]),
        helper.make_node("Constant", [], ["rest"], value_ints=[-1]),
        helper.make_node("Concat", ["rows", "rest"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["x", "sizes"], ["y"]),
    ]
    proto = graph_model(nodes, ["y"])
    for rows in (1, 3):
        [found] = lifted(proto, {"x": floats(rows, 2, 2)})
        assert found.shape == (rows, 4)
