"""Classifiers in ONNX files of others: what they are is found out, or refused in a sentence."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from firewall.attack.apgd import AutoPGD
from firewall.errors import ConfigError
from firewall.evaluation.onnx_target import OnnxTarget
from firewall.testing import images
from tests.support.tiny import write_tiny_onnx

SHAPE = (3, 32, 32)
Change = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """The tiny classifier: logits of ten classes."""
    return onnx.load(write_tiny_onnx(tmp_path_factory.mktemp("onnx") / "net.onnx"))


def changed(model: onnx.ModelProto, path: Path, *changes: Change) -> Path:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for change in changes:
        change(copy)
    path.write_bytes(copy.SerializeToString())
    return path


def ending(*operators: str) -> Change:
    """Operators after the output, one after the other."""

    def change(model: onnx.ModelProto) -> None:
        name = model.graph.output[0].name
        for number, operator in enumerate(operators):
            attributes = {"axis": 1} if operator == "Softmax" else {}
            model.graph.node.append(
                helper.make_node(operator, [name], [f"end_{number}"], **attributes)
            )
            name = f"end_{number}"
        model.graph.output[0].name = name

    return change


@pytest.mark.parametrize(
    ("operators", "outputs"),
    [
        ((), "logits"),
        (("Softmax",), "softmax"),
        (("Softmax", "Identity", "Identity"), "softmax"),
        # Probabilities whose softmax is hidden from view.
        (("Softmax", "Relu"), "probabilities"),
    ],
)
def test_probabilities_are_attacked_through_what_they_come_from(
    operators: tuple[str, ...], outputs: str, model: onnx.ModelProto, tmp_path: Path
) -> None:
    plain = OnnxTarget.read(changed(model, tmp_path / "plain.onnx"), SHAPE)
    target = OnnxTarget.read(changed(model, tmp_path / "net.onnx", ending(*operators)), SHAPE)
    notes = {"logits": None, "softmax": "its logits", "probabilities": "their logarithm"}
    assert (notes[outputs] or "") in (target.note or "")
    assert (target.note is None) == (outputs == "logits")
    x = images(20, seed=1)
    with torch.no_grad():
        y = plain.module()(x).argmax(dim=1)
        assert torch.equal(target.module()(x).argmax(dim=1), y)
    attack = AutoPGD(0.02, 20)
    stands = [
        float((one.module()(attack(one.module(), x, y)).argmax(dim=1) == y).float().mean())
        for one in (plain, target)
    ]
    assert stands[1] <= stands[0] + 0.05


def outside(folder: Path, where: str) -> Change:
    """Move the largest weight out of the file, to be found at `where`."""

    def change(model: onnx.ModelProto) -> None:
        tensor = max(model.graph.initializer, key=lambda one: one.ByteSize())
        data = numpy_helper.to_array(tensor).tobytes()
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=where)
        (folder / os.path.basename(where)).write_bytes(data)

    return change


def test_weights_are_taken_from_beside_the_file_and_count(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, elsewhere = tmp_path / "model", tmp_path / "cwd"
    beside.mkdir()
    elsewhere.mkdir()
    path = changed(model, beside / "net.onnx", outside(beside, "weights.bin"))
    whole = OnnxTarget.read(changed(model, tmp_path / "whole.onnx"), SHAPE)
    # Another network's weights, where the command happens to run.
    size = (beside / "weights.bin").stat().st_size
    (elsewhere / "weights.bin").write_bytes(bytes(size))
    monkeypatch.chdir(elsewhere)
    target = OnnxTarget.read(path, SHAPE)
    x = images(4)
    with torch.no_grad():
        assert torch.allclose(target.module()(x), whole.module()(x))
    (beside / "weights.bin").write_bytes(np.ones(size // 4, np.float32).tobytes())
    assert OnnxTarget.read(path, SHAPE).digest != target.digest
    (beside / "weights.bin").unlink()
    with pytest.raises(ConfigError, match=r"keeps weights in other files, which must lie beside"):
        OnnxTarget.read(path, SHAPE)


@pytest.mark.parametrize("where", ["../weights.bin", "/etc/passwd"])
def test_weights_elsewhere_are_refused(where: str, model: onnx.ModelProto, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = changed(model, folder / "net.onnx", outside(tmp_path, where))
    with pytest.raises(ConfigError, match="must lie beside it"):
        OnnxTarget.read(path, SHAPE)


def fixed_rows(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def whole_numbers(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8


def flat(model: onnx.ModelProto) -> None:
    del model.graph.input[0].type.tensor_type.shape.dim[2:]


def two_outputs(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = model.graph.node[-1].output[0] = "first"
    model.graph.output.add().CopyFrom(model.graph.output[0])
    model.graph.output[1].name = model.graph.node[0].output[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (whole_numbers, "onnxruntime cannot load this graph; does it run with onnxruntime"),
        (flat, r"takes \[.*\]; expected images"),
        (two_outputs, "has the outputs 'first' .*; name the one with the class scores"),
        (ending("ArgMax"), "onnxruntime cannot load|an index or a count and no class scores"),
    ],
)
def test_what_is_no_such_classifier_is_said_before_anything_is_computed(
    change: Change, words: str, model: onnx.ModelProto, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        OnnxTarget.read(changed(model, tmp_path / "net.onnx", change), SHAPE)


def test_a_file_of_one_row_is_asked_row_by_row(model: onnx.ModelProto, tmp_path: Path) -> None:
    target = OnnxTarget.read(changed(model, tmp_path / "one.onnx", fixed_rows), SHAPE)
    plain = OnnxTarget.read(changed(model, tmp_path / "net.onnx"), SHAPE)
    x = images(3).requires_grad_(True)
    logits = target.module()(x)
    assert torch.allclose(logits, plain.module()(x), atol=1e-5)
    assert torch.autograd.grad(logits.sum(), x)[0].abs().sum() > 0


def test_sizes_of_minus_one_are_any_size(model: onnx.ModelProto, tmp_path: Path) -> None:
    """As Paddle exports them."""

    def minus_one(model: onnx.ModelProto) -> None:
        for axis in (0, 2, 3):
            model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = -1

    target = OnnxTarget.read(changed(model, tmp_path / "net.onnx", minus_one), SHAPE)
    assert target.classes == 10


def test_another_size_is_said(model: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--shape: channels 1; input 'x' takes \[any, 3, 32, 32"):
        OnnxTarget.read(changed(model, tmp_path / "net.onnx"), (1, 28, 28))
