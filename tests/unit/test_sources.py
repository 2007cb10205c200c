"""Classifiers of other people: what each kind takes and answers is found out, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from PIL import Image

from firewall.bundle.spec import InputSpec, Preprocessing, ScoreSpec
from firewall.errors import ConfigError
from firewall.evaluation.onnx_target import OnnxTarget
from firewall.guard.wire_input import WireInput
from firewall.screening.local_model import LocalModel
from firewall.screening.preprocess import add_to_wire, check_values, to_wire
from firewall.screening.scores import Scores, log_softmax
from firewall.screening.wire_pixels import pixels as pixels_of
from firewall.sources.check import check_reference
from firewall.sources.options import SourceOptions
from firewall.sources.plan import Plan, inspect
from firewall.sources.source import embed, open_source
from firewall.train.guard_source import Settings, split
from tests.support.onnx_files import SIDE, Kind, photographs, pixels, write_classifier

ZERO_ONE = SourceOptions(preset="zero-one")
CAFFE = Kind(nhwc=True, bgr=True, scale=255.0, mean=(104.0, 117.0, 123.0))
#: What people bring, and what they say of it.
KINDS: dict[str, tuple[Kind, SourceOptions]] = {
    "plain": (Kind(), ZERO_ONE),
    "old": (Kind(opset=9, ir=3), ZERO_ONE),
    "nhwc": (Kind(nhwc=True), ZERO_ONE),
    "caffe": (CAFFE, SourceOptions(preset="caffe-bgr")),
    "caffe-flags": (
        CAFFE,
        SourceOptions(
            mean=(104.0, 117.0, 123.0), std=(1.0, 1.0, 1.0), value_range=(0.0, 255.0),
            channel_order="BGR",
        ),
    ),
    "uint8": (Kind(nhwc=True, scale=255.0, datatype=TensorProto.UINT8), SourceOptions()),
    "uint8-bgr": (
        Kind(bgr=True, scale=255.0, datatype=TensorProto.UINT8),
        SourceOptions(channel_order="BGR"),
    ),
    "fp16": (Kind(datatype=TensorProto.FLOAT16), ZERO_ONE),
    "softmax": (Kind(ending=("Softmax",)), ZERO_ONE),
    "fp64": (Kind(ending=("Softmax", "Cast64")), ZERO_ONE),
    "trailing-sizes": (Kind(ending=("Unsqueeze",)), ZERO_ONE),
    "one-row": (Kind(rows=1), ZERO_ONE),
    "four-rows": (Kind(rows=4), ZERO_ONE),
    "open-sizes": (Kind(open_sizes=True), replace(ZERO_ONE, shape=(3, SIDE, SIDE))),
    "features": (Kind(features=True), ZERO_ONE),
    "two-classes": (Kind(classes=2), ZERO_ONE),
    "sigmoid-head": (Kind(classes=1, ending=("Sigmoid",)), ZERO_ONE),
    "logit-head": (Kind(classes=1), replace(ZERO_ONE, activation="logits")),
    "many-classes": (Kind(classes=21_841), ZERO_ONE),
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("photos"), 40)


def plan_of(path: Path, options: SourceOptions, photos: Path) -> Plan:
    source = open_source(str(path), options, None)
    return inspect(source, options, [photos], 100, lambda line: None)


def expected_logits(kind: Kind, images: np.ndarray, folder: Path) -> np.ndarray:
    """Of the plainest file with the same weights."""
    path = write_classifier(folder / "plain.onnx", Kind(classes=kind.classes))
    model = LocalModel(path.read_bytes(), scores="logits")
    answers = model.infer(images.transpose(0, 3, 1, 2).astype(np.float32) / 255, None).scores
    found: np.ndarray = answers
    return found


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_is_asked_and_lifted_alike(
    name: str, photos: Path, tmp_path: Path
) -> None:
    kind, options = KINDS[name]
    path = write_classifier(tmp_path / "net.onnx", kind)
    plan = plan_of(path, options, photos)
    images = plan.images.pixels[plan.sample]
    plain = expected_logits(kind, images, tmp_path)
    if kind.classes == 1:
        plain = np.concatenate([np.zeros_like(plain), plain], axis=1)
    said = log_softmax(plan.checked.logits)
    expected = np.maximum(log_softmax(plain), np.log(1e-12))
    tolerance = 2e-2 if kind.datatype == TensorProto.FLOAT16 else 2e-3
    assert np.allclose(np.maximum(said, np.log(1e-12)), expected, atol=tolerance)
    target = OnnxTarget.read(path, None, options)
    x = torch.from_numpy(images[:6].transpose(0, 3, 1, 2).astype(np.float32) / 255)
    x.requires_grad_(True)
    lifted = target.module()(x)
    top = lifted.argmax(dim=1)
    clear = np.ptp(np.sort(expected[:6], axis=1)[:, -2:], axis=1) > 4 * tolerance
    assert (top.numpy() == expected[:6].argmax(axis=1))[clear].all()
    (gradient,) = torch.autograd.grad((lifted[:, 1] - lifted[:, 0]).sum(), x)
    assert gradient.flatten(1).abs().sum(dim=1).min() > 0


@pytest.mark.parametrize("name", ["caffe", "uint8-bgr", "nhwc", "plain"])
def test_the_wire_and_its_images_are_the_same_everywhere(
    name: str, photos: Path, tmp_path: Path
) -> None:
    """Numpy, torch and the graphs agree on layout, range and the order of channels."""
    kind, options = KINDS[name]
    spec = plan_of(write_classifier(tmp_path / "net.onnx", kind), options, photos).spec
    images = pixels(3, seed=9)
    wire = to_wire(images, spec)
    check_values(wire, spec, "x")
    unit = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    assert np.allclose(pixels_of(wire, spec), unit, atol=1e-6)
    assert np.allclose(WireInput(spec)(torch.from_numpy(wire)).numpy(), unit, atol=1e-6)
    assert np.allclose(WireInput(spec).back(torch.from_numpy(unit)).numpy(), wire, atol=1e-4)
    change = np.zeros((1, 3, SIDE, SIDE), np.float32)
    change[0, 0] = 10 / 255
    moved = pixels_of(add_to_wire(wire[0], change, spec), spec)[0]
    inside = unit[0, 0] < 0.95
    assert np.allclose((moved - unit[0])[0][inside], 10 / 255, atol=1e-3)
    assert np.allclose((moved - unit[0])[1:], 0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (Kind(), SourceOptions(), r"is not known.*--preset zero-one \d+%"),
        (Kind(ending=("ArgMax",)), ZERO_ONE, "index or a count and no class scores"),
        (Kind(ending=("Sigmoid",)), ZERO_ONE, "labels that may apply together"),
        (
            Kind(ending=("Exp", "Sigmoid")),
            replace(ZERO_ONE, activation="sigmoid"),
            "labels that may apply together",
        ),
        (Kind(ending=("Normalise",), output="vector"), ZERO_ONE, "an embedding"),
        (Kind(output="embedding"), ZERO_ONE, "looks like features"),
        (Kind(ending=("AcrossBatch",)), ZERO_ONE, "its rows depend on one another"),
        (Kind(ending=("Relu", "Floor", "Sign", "Relu"), classes=1), ZERO_ONE, "the same for all|"
         "a whole number for every image"),
        (
            Kind(ending=("Softmax",)),
            replace(ZERO_ONE, activation="logits"),
            "sums to 1 for every image",
        ),
        (Kind(), replace(ZERO_ONE, activation="softmax"), "does not sum to 1"),
        (Kind(), replace(ZERO_ONE, activation="sigmoid"), r"leaves \[0, 1\]"),
        (Kind(), replace(ZERO_ONE, layout="NHWC"), "--layout: NHWC does not fit"),
        (Kind(), replace(ZERO_ONE, shape=(3, 64, 64)), "--shape: height 64"),
        (Kind(), replace(ZERO_ONE, output="scores"), "--output: 'scores'; .* 'logits'"),
        (Kind(), replace(ZERO_ONE, input="x"), "--input: 'x'; .* 'images'"),
        (Kind(open_sizes=True), ZERO_ONE, r"is open; name the size with --shape"),
        (
            Kind(scale=255.0, datatype=TensorProto.UINT8),
            ZERO_ONE,
            "takes UINT8, which are pixels from 0 to 255",
        ),
        (Kind(), replace(ZERO_ONE, checkpoint=Path("w.pth")), "--checkpoint: is for timm:NAME"),
    ],
)  # fmt: skip
def test_what_a_guard_would_have_no_meaning_for_is_refused(
    kind: Kind, options: SourceOptions, words: str, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_of(write_classifier(tmp_path / "net.onnx", kind), options, photos)


def test_labels_of_another_number_are_refused(photos: Path, tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "net.onnx", Kind())
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    with pytest.raises(ConfigError, match="has 2 names; the classifier has 5 classes"):
        plan_of(path, replace(ZERO_ONE, labels=tmp_path / "labels.txt"), photos)


def test_a_file_of_features_and_logits_is_guarded_by_its_logits(
    photos: Path, tmp_path: Path
) -> None:
    plan = plan_of(write_classifier(tmp_path / "net.onnx", Kind(features=True)), ZERO_ONE, photos)
    assert plan.source.output.name == "logits"
    assert [(one.name, one.shape, one.datatype) for one in plan.others] == [("flat", (12,), "FP32")]


def test_a_wrong_preset_is_asked_about(photos: Path, tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "net.onnx", CAFFE)
    plan = plan_of(path, SourceOptions(preset="zero-one"), photos)
    assert any("is that what it was trained with?" in one for one in plan.warnings)
    assert dict(plan.checked.confidence)["as described"] < 1


def test_folders_named_after_classes_give_accuracy_and_find_a_wrong_preset(
    photos: Path, tmp_path: Path
) -> None:
    path = write_classifier(tmp_path / "net.onnx", CAFFE)
    right = SourceOptions(preset="caffe-bgr")
    plan = plan_of(path, right, photos)
    for name, image in zip(plan.images.names, plan.images.pixels, strict=True):
        at = plan.images.names.index(name)
        top = int(_logits(plan)[at].argmax())
        folder = tmp_path / "sorted" / str(top)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    assert plan_of(path, right, tmp_path / "sorted").accuracy == 1.0
    wrong = plan_of(path, SourceOptions(preset="tf"), tmp_path / "sorted")
    assert wrong.accuracy is not None
    assert wrong.accuracy < 0.9
    assert any("--preset caffe-bgr the classifier is right on" in one for one in wrong.warnings)


def _logits(plan: Plan) -> np.ndarray:
    classifier = plan.source.open()
    answers = classifier.infer(to_wire(plan.images.pixels, plan.spec), None).scores
    return plan.checked.scores.logits(answers)


def test_a_description_is_compared_with_the_sources_own_preprocessing() -> None:
    """A stand-in for a Hugging Face processor: centre of a resized image, -1 to 1."""
    spec = InputSpec(channels=3, height=64, width=64, low=-1.0, high=1.0)
    crop = Preprocessing(resize=72)

    def processor(image: np.ndarray) -> np.ndarray:
        small = Image.fromarray(image).resize((96, 72), Image.Resampling.BILINEAR)
        unit = np.asarray(small.crop((16, 4, 80, 68)), np.float32) / 255
        return unit.transpose(2, 0, 1) * 2 - 1

    check_reference(processor, spec, crop, "its file")
    wrong = {
        "other colours": (lambda image: processor(image)[::-1], spec, crop),
        "another range": (processor, spec.model_copy(update={"low": 0.0}), crop),
        "another crop": (processor, spec, Preprocessing(resize=128)),
        "squashed": (processor, spec, Preprocessing(resize=64, fit="squash")),
        "another size": (lambda image: processor(image)[:, ::2], spec, crop),
    }
    for reference, described, prepared in wrong.values():
        with pytest.raises(ConfigError, match="the description read from its file is not what"):
            check_reference(reference, described, prepared, "its file")


def test_taps_are_pooled_inside_the_graph(photos: Path, tmp_path: Path) -> None:
    plan = plan_of(write_classifier(tmp_path / "net.onnx", Kind()), ZERO_ONE, photos)
    embedded = embed(plan.source, plan.spec, ())
    assert embedded.features == {"penultimate": (12,)}
    model = LocalModel(embedded.graph, scores="logits", taps=embedded.taps)
    answers = model.infer(to_wire(plan.images.pixels[:3], plan.spec), None)
    assert answers.features["penultimate"].shape == (3, 12)
    assert not onnx.load_from_string(embedded.graph).metadata_props
    unread = embed(plan.source, plan.spec, (), wanted=())
    assert (unread.taps, unread.features) == ((), {})
    outputs = [one.name for one in onnx.load_from_string(unread.graph).graph.output]
    assert outputs == ["logits"]


@pytest.mark.parametrize("activation", ["logits", "softmax", "sigmoid"])
@pytest.mark.parametrize("shape", [(1,), (4,), (4, 1, 1)])
def test_log_probabilities_are_answered_in_the_classifiers_own_terms(
    activation: str, shape: tuple[int, ...]
) -> None:
    if activation == "softmax" and shape == (1,):
        pytest.skip("one probability is no softmax")
    classes = max(2, int(np.prod(shape)))
    spec = ScoreSpec.model_validate({"activation": activation, "datatype": "FP64", "shape": shape})
    scores = Scores(spec, shape, classes)
    said = log_softmax(np.random.default_rng(0).normal(0, 2, (7, classes)).astype(np.float32))
    answers = scores.answers(said)
    assert answers.shape == (7, *shape)
    assert answers.dtype == np.float64
    if activation != "sigmoid" or classes == 2:
        assert np.allclose(log_softmax(scores.logits(answers)), said, atol=1e-4)
    assert (scores.logits(answers).argmax(axis=1) == said.argmax(axis=1)).all()


def test_a_rate_that_nobody_asked_for_is_never_an_error() -> None:
    parts, rate = split(40, Settings())
    assert rate == 0.1
    assert sorted(np.concatenate(list(parts.values()))) == list(range(40))
    assert split(400, Settings())[1] == 0.01
    assert split(40, Settings(rate=0.1))[1] == 0.1
    with pytest.raises(ConfigError, match=r"40 cannot promise .* 0\.01, which takes about 285"):
        split(40, Settings(rate=0.01))


def test_sources_that_are_none_are_said(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no graph")
    for text, words in (
        ("nothing", "expected an .onnx file, timm:NAME"),
        (str(tmp_path / "missing.onnx"), "cannot be read"),
        (str(tmp_path / "text.onnx"), "is not an ONNX model"),
        ("hf:" + str(tmp_path), "config.json is missing"),
        ("no_such_module:load", "ModuleNotFoundError"),
    ):
        with pytest.raises(ConfigError, match=words):
            open_source(text, SourceOptions(), None)
