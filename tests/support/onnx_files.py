"""Small ONNX classifiers of every kind that people bring, with answers that are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

#: Height and width of the images; classes.
SIDE, CLASSES = 32, 5
_NUMPY = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}


@dataclass(frozen=True)
class Kind:
    """How a file differs from the plainest one: NCHW, RGB, [0, 1], FP32 logits of five classes.

    Attributes:
        nhwc: channels last.
        bgr: channels in the order of Caffe.
        scale: values of the input are pixels in [0, 1] times this, less `mean`.
        mean: taken away from each channel, in the order of the input.
        datatype: of the input.
        ending: operators after the logits.
        classes: how many.
        rows: of a pass; None is any number.
        open_sizes: whether height and width are left open.
        features: whether it answers its features too, before the logits.
        output: name of the scores.
        opset: of the file.

    """

    nhwc: bool = False
    bgr: bool = False
    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    datatype: int = TensorProto.FLOAT
    ending: tuple[str, ...] = ()
    classes: int = CLASSES
    rows: int | None = None
    open_sizes: bool = False
    features: bool = False
    output: str = "logits"
    opset: int = 13
    ir: int = field(default=8)


def write_classifier(path: Path, kind: Kind) -> Path:
    """Write a file; its classes tell colours and textures apart, whatever its input looks like."""
    rng = np.random.default_rng(5)
    first = rng.normal(0, 0.5, (12, 3, 3, 3)).astype(np.float32)
    last = rng.normal(0, 2.0, (12, kind.classes)).astype(np.float32)
    bias = rng.normal(0, 0.1, kind.classes).astype(np.float32)
    mean = np.array(kind.mean, np.float32)[:, None, None]
    constants = {
        "scale": np.array(1 / kind.scale, np.float32),
        "mean": mean,
        "order": np.array([2, 1, 0] if kind.bgr else [0, 1, 2], np.int64),
        "first": first,
        "last": last,
        "bias": bias,
    }
    nodes = []
    name = "images"

    def add(operator: str, inputs: list[str], output: str, **attributes: object) -> None:
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))

    if kind.datatype != TensorProto.FLOAT:
        add("Cast", [name], "float", to=TensorProto.FLOAT)
        name = "float"
    if kind.nhwc:
        add("Transpose", [name], "nchw", perm=[0, 3, 1, 2])
        name = "nchw"
    add("Add", [name, "mean"], "pixels")
    add("Mul", ["pixels", "scale"], "unit")
    add("Gather", ["unit", "order"], "rgb", axis=1)
    add("Conv", ["rgb", "first"], "conv", kernel_shape=[3, 3], strides=[2, 2])
    add("Relu", ["conv"], "relu")
    add("GlobalAveragePool", ["relu"], "pool")
    add("Flatten", ["pool"], "flat", axis=1)
    add("Gemm", ["flat", "last", "bias"], "gemm")
    name = "gemm"
    for number, operator in enumerate(kind.ending):
        target = f"end_{number}"
        if operator == "Softmax":
            add("Softmax", [name], target, axis=1)
        elif operator == "Cast64":
            add("Cast", [name], target, to=TensorProto.DOUBLE)
        elif operator == "ArgMax":
            add("ArgMax", [name], target, axis=1, keepdims=0)
        elif operator == "Unsqueeze":
            constants["axes"] = np.array([2, 3], np.int64)
            add("Unsqueeze", [name, "axes"], target)
        elif operator == "AcrossBatch":
            add("ReduceMean", [name], "batch", axes=[0], keepdims=1)
            add("Sub", [name, "batch"], target)
        elif operator == "Normalise":
            add("LpNormalization", [name], target, axis=1, p=2)
        else:
            add(operator, [name], target)
        name = target
    nodes[-1].output[0] = kind.output
    size: list[int | str] = ["height", "width"] if kind.open_sizes else [SIDE, SIDE]
    shape = [kind.rows or "batch", *((*size, 3) if kind.nhwc else (3, *size))]
    last_kind = TensorProto.FLOAT
    if "Cast64" in kind.ending:
        last_kind = TensorProto.DOUBLE
    if "ArgMax" in kind.ending:
        last_kind = TensorProto.INT64
    answered: list[int | None] = [None, kind.classes]
    if "ArgMax" in kind.ending:
        answered = [None]
    if "Unsqueeze" in kind.ending:
        answered += [1, 1]
    outputs = [helper.make_tensor_value_info(kind.output, last_kind, answered)]
    if kind.features:
        features = helper.make_tensor_value_info("flat", TensorProto.FLOAT, [None, 12])
        outputs.insert(0, features)
    graph = helper.make_graph(
        nodes,
        "classifier",
        [
            helper.make_tensor_value_info("images", kind.datatype, shape),
            # Before IR version 4 every constant is an input as well.
            *(
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
                )
                for name, value in constants.items()
                if kind.ir < 4
            ),
        ],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", kind.opset)], ir_version=kind.ir
    )
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def photographs(folder: Path, count: int, seed: int = 0) -> Path:
    """Write smooth coloured images with some texture, each another one; returns the folder."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(pixels(count, seed)):
        Image.fromarray(image).save(folder / f"{number:04}.png")
    return folder


def pixels(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """[count, SIDE, SIDE, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    found = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for number in range(count):
        colour = rng.uniform(0.1, 0.9, 3)
        slope = rng.uniform(-0.4, 0.4, (2, 3))
        wave = np.sin(rng.uniform(4, 40) * x + rng.uniform(4, 40) * y)[..., None]
        image = colour + x[..., None] * slope[0] + y[..., None] * slope[1]
        image = image + rng.uniform(0, 0.2) * wave + rng.normal(0, 0.01, (SIDE, SIDE, 3))
        found[number] = (np.clip(image, 0, 1) * 255).round()
    return found
