"""Small graphs that ask for much memory are refused, before they run or when they do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from firewall.bundle.onnx_file import check_graph
from firewall.bundle.store import Bundle
from firewall.errors import BundleMalformed, BundleTooLarge
from firewall.screening.graph_limits import check_tensors
from firewall.screening.load import load_guard
from firewall.screening.policy import Policy

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
GIB = 1 << 30


def hostile(
    nodes: list[onnx.NodeProto], *constants: onnx.TensorProto, dims: tuple[object, ...] = ("n", 1)
) -> bytes:
    """A graph from `wire` to `logits`, which is the sum of `big`."""
    graph = helper.make_graph(
        [*nodes, helper.make_node("ReduceSum", ["big"], ["logits"], keepdims=0)],
        "g",
        [helper.make_tensor_value_info("wire", FLOAT, dims)],
        [helper.make_tensor_value_info("logits", FLOAT, None)],
        initializer=constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    data: bytes = model.SerializeToString()
    assert len(data) < 1024
    return data


def ints(name: str, *values: int) -> onnx.TensorProto:
    return helper.make_tensor(name, INT64, [len(values)], values)


def scalar(name: str, value: float) -> onnx.TensorProto:
    return helper.make_tensor(name, FLOAT, [], [value])


def node(kind: str, inputs: list[str], output: str = "big", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], **attributes)


ONE = helper.make_tensor("one", FLOAT, [1], [1.0])
#: Each makes 4 GiB or more of a file under 1 KB; onnxruntime knows the shape from the file.
KNOWN: dict[str, Callable[[], bytes]] = {
    "constant": lambda: hostile([node("ConstantOfShape", ["s"])], ints("s", GIB)),
    "range": lambda: hostile(
        [node("Range", ["a", "b", "c"])], scalar("a", 0), scalar("b", float(GIB)), scalar("c", 1)
    ),
    "expand": lambda: hostile([node("Expand", ["wire", "s"])], ints("s", 1, GIB)),
    "expand of a constant": lambda: hostile([node("Expand", ["one", "s"])], ONE, ints("s", GIB)),
    "tile": lambda: hostile(
        [
            node("Tile", ["wire", "t"], "a"),
            node("Tile", ["a", "t"], "b"),
            node("Tile", ["b", "t"]),
        ],
        ints("t", 1, 1024),
    ),
    "pad": lambda: hostile([node("Pad", ["wire", "p"])], ints("p", 0, 0, 0, GIB)),
    "resize": lambda: hostile(
        [node("Resize", ["wire", "", "r"], mode="nearest")],
        helper.make_tensor("r", FLOAT, [2], [1.0, float(GIB)]),
    ),
}
#: The same, of a shape that is computed when the graph runs.
UNKNOWN: dict[str, Callable[[], bytes]] = {
    "shape of the input": lambda: hostile(
        [
            node("Shape", ["wire"], "s"),
            node("Mul", ["s", "m"], "t"),
            node("ConstantOfShape", ["t"]),
        ],
        ints("m", 1, GIB),
    ),
    "values of the input": lambda: hostile(
        [
            node("Cast", ["wire"], "i", to=INT64),
            node("Flatten", ["i"], "j", axis=0),
            node("Mul", ["j", "m"], "t"),
            node("Reshape", ["t", "flat"], "u"),
            node("Tile", ["one", "u"]),
        ],
        ints("m", GIB), ints("flat", -1), ONE,
    ),
    "a chain": lambda: hostile(
        [
            node("Cast", ["wire"], "i", to=INT64),
            node("Reshape", ["i", "flat"], "j"),
            node("Mul", ["j", "m"], "t"),
            node("Tile", ["one", "t"], "a"),
            node("Tile", ["a", "t"], "b"),
            node("Tile", ["b", "t"]),
        ],
        ints("m", 1024), ints("flat", -1), ONE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KNOWN)
def test_tensors_of_known_shape_are_bounded_before_the_graph_is_opened(kind: str) -> None:
    graph = KNOWN[kind]()
    check_graph("cheap.onnx", graph)
    with pytest.raises(
        BundleTooLarge,
        match=r"^cheap\.onnx: tensor '\w+' takes \d+ MiB, over the limit of 512 MiB$",
    ):
        check_tensors("cheap.onnx", graph)


RUN = """
import json, sys
from pathlib import Path
import numpy as np
from firewall.errors import BundleError
from firewall.screening.compiled import CompiledGuard
from firewall.screening.selftest import SelfTest

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024

before, error = peak(), None
wire = np.ones((1, 1), np.float32)
none = np.empty((0, 1), np.float32)
try:
    guard = CompiledGuard({"cheap.onnx": Path(sys.argv[1]).read_bytes()})
    SelfTest(wire, none, none, none).run(guard)
except BundleError as raised:
    error = str(raised)
print(json.dumps({"error": error, "grown": peak() - before}))
"""


@pytest.mark.parametrize("kind", [*KNOWN, *UNKNOWN])
def test_no_small_graph_takes_much_memory(kind: str, tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes((KNOWN | UNKNOWN)[kind]())
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "g.onnx")],
        env=os.environ | {"FIREWALL_WORKING_MEMORY_MIB": "512"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert answer["error"] is not None
    assert ("takes" if kind in KNOWN else "more memory than a pass may") in answer["error"]
    assert answer["grown"] < 600


@pytest.mark.parametrize("value", ["0", "-1", "much", "", "1.5"])
def test_a_wrong_limit_of_working_memory_is_a_mistake_of_settings(
    value: str, tmp_path: Path
) -> None:
    (tmp_path / "g.onnx").write_bytes(UNKNOWN["a chain"]())
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "g.onnx")],
        env=os.environ | {"FIREWALL_WORKING_MEMORY_MIB": value},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "ConfigError: FIREWALL_WORKING_MEMORY_MIB: " in done.stderr


def test_a_guard_is_not_loaded_from_a_bundle_with_such_a_graph(tiny: Bundle) -> None:
    files = {**tiny.files, "expensive.onnx": KNOWN["tile"]()}
    with pytest.raises(BundleTooLarge, match=r"expensive\.onnx: tensor"):
        load_guard(replace(tiny, files=files), Policy())


def test_what_a_file_says_about_shapes_is_not_believed() -> None:
    model = onnx.load_from_string(KNOWN["tile"]())
    for name in ("a", "b", "big"):
        model.graph.value_info.append(helper.make_tensor_value_info(name, FLOAT, ["n", 1]))
    with pytest.raises(BundleTooLarge):
        check_tensors("g.onnx", model.SerializeToString())


def test_tensors_are_measured_with_the_rows_of_a_pass() -> None:
    graph = hostile([node("Tile", ["wire", "t"])], ints("t", 1, 64 << 10), dims=("n", 16))
    check_tensors("g.onnx", graph, 100)
    with pytest.raises(BundleTooLarge, match="takes 1024 MiB"):
        check_tensors("g.onnx", graph, 256)
    # 65,536 values of the input are one pass: 4,096 rows of 16.
    with pytest.raises(BundleTooLarge, match="takes 16384 MiB"):
        check_tensors("g.onnx", graph)


@pytest.mark.parametrize("dims", [("n", "m"), (None, None), ("n", None, 3)])
def test_an_input_of_open_shape_is_refused(dims: tuple[object, ...]) -> None:
    graph = hostile([node("Relu", ["wire"])], dims=dims)
    with pytest.raises(BundleMalformed, match="'wire' does not say its shape"):
        check_tensors("g.onnx", graph)


# --- what a file may hold -----------------------------------------------------------------------


def body() -> onnx.GraphProto:
    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    constant = helper.make_node("Constant", [], ["keep"], value=true)
    names = ("trip", "cond", "state")
    inputs = [helper.make_tensor_value_info(name, FLOAT, []) for name in names]
    return helper.make_graph([constant], "body", inputs, [])


@pytest.mark.parametrize("kind", ["Loop", "Scan", "If", "SequenceMap"])
def test_control_flow_is_refused(kind: str) -> None:
    graph = hostile([node(kind, ["wire"], body=body())])
    with pytest.raises(BundleMalformed, match=f"operator '{kind}' is control flow"):
        check_graph("g.onnx", graph)


def test_a_subgraph_of_any_operator_is_refused() -> None:
    with pytest.raises(BundleMalformed, match="operator 'Other' has a subgraph"):
        check_graph("g.onnx", hostile([node("Other", ["wire"], body=body())]))


@pytest.mark.parametrize("domain", ["com.microsoft", "ai.onnx.ml", "ai.onnx.training", "my.ops"])
def test_an_operator_of_another_domain_is_refused(domain: str) -> None:
    with pytest.raises(BundleMalformed, match=f"operator 'Gelu' of domain '{domain}'"):
        check_graph("g.onnx", hostile([node("Gelu", ["wire"], domain=domain)]))


def test_a_tensor_that_claims_more_values_than_it_holds_is_refused() -> None:
    tensor = ints("s", 1)
    tensor.dims[0] = 1 << 40
    with pytest.raises(BundleMalformed, match=r"'s' of shape \[1099511627776\] does not hold"):
        check_graph("g.onnx", hostile([node("ConstantOfShape", ["s"])], tensor))


@pytest.mark.parametrize("where", ["initializer", "attribute"])
def test_a_sparse_tensor_is_refused(where: str) -> None:
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("v", FLOAT, [1], [1.0]), ints("i", 3), [1 << 40]
    )
    if where == "attribute":
        graph = hostile([node("Constant", [], sparse_value=sparse)])
    else:
        model = onnx.load_from_string(hostile([node("Relu", ["wire"])]))
        model.graph.sparse_initializer.append(sparse)
        graph = model.SerializeToString()
    with pytest.raises(BundleMalformed, match="sparse tensors are not served"):
        check_graph("g.onnx", graph)
