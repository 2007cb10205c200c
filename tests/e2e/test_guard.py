"""`firewall guard`: from a classifier of somebody's own to answers behind a guard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto
from typer.testing import CliRunner

from firewall.bundle.signing import user_signer
from firewall.bundle.store import open_bundle
from firewall.cli.app import app
from firewall.client import Client, Verdict
from firewall.client.open_inference import OpenInferenceClient
from firewall.errors import ConfigError, Refused
from firewall.evaluation.python_api import evaluate
from firewall.screening.load import load_guard
from firewall.screening.policy import Policy
from firewall.screening.preprocess import to_wire
from tests.support.command import command
from tests.support.onnx_files import SIDE, Kind, photographs, pixels, write_classifier
from tests.support.served import Served, served

IMAGES = 200
#: Of Caffe: channels last and blue first, 0 to 255 less a mean; probabilities of two classes.
CAFFE = Kind(
    nhwc=True, bgr=True, scale=255.0, mean=(104.0, 117.0, 123.0), classes=2,
    ending=("Softmax",), output="prob", features=True, rows=1,
)  # fmt: skip


def guard(file: Path, photos: Path, out: Path, *options: str) -> Any:
    return CliRunner().invoke(
        app,
        ["guard", str(file), str(photos), "--out", str(out), "--minutes", "0.01", "--json",
         *options],
    )  # fmt: skip


@dataclass
class Guarded:
    """A guard made by one command, the file that it guards, and both served and told."""

    file: Path
    photos: Path
    bundle: Path
    told: dict[str, Any]
    server: Served

    def bare(self, wire: np.ndarray) -> list[np.ndarray]:
        session = ort.InferenceSession(self.file, providers=["CPUExecutionProvider"])
        rows = [session.run(["prob", "flat"], {"images": row[None]}) for row in wire]
        return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guard")
    file = write_classifier(folder / "caffe.onnx", CAFFE)
    photos = photographs(folder / "photos", IMAGES)
    done = guard(file, photos, folder / "made", "--preset", "caffe-bgr",
                 "--false-positive-rate", "0.05")  # fmt: skip
    assert done.exit_code == 0, done.exception
    told = json.loads(done.stdout.splitlines()[-1])
    serving = folder / "serving"
    serving.mkdir()
    with served(folder / "made", user_signer(), serving) as server:
        yield Guarded(file, photos, folder / "made", told, server)


def test_one_command_makes_a_signed_bundle_with_its_card(guarded: Guarded) -> None:
    opened = open_bundle(guarded.bundle, {user_signer().public})
    manifest = opened.manifest
    assert (manifest.name, manifest.classifier.kind) == ("caffe", "file")
    assert manifest.promised_rate == 0.05
    assert manifest.scores.activation == "softmax"
    knowledge = {one["knowledge"] for one in guarded.told["evaluation"]["attacks"]}
    assert knowledge == {"oblivious", "transfer", "black-box", "adaptive"}
    assert set(manifest.threat_model.evaluated) == knowledge
    card = opened.files["MODEL_CARD.md"].decode()
    assert "adaptive, weighted, past the cheap tier" in card
    assert "The suite `quick`" in card
    report = guarded.bundle.with_name("made.report.html")
    assert "adaptive" in report.read_text()
    assert not guarded.bundle.with_name("made.work").exists()
    assert command("bundle", "verify", str(guarded.bundle)).returncode == 0


def accepted_rows(guarded: Guarded, count: int) -> np.ndarray:
    opened = open_bundle(guarded.bundle, {user_signer().public})
    live = load_guard(opened, Policy())
    wire = to_wire(pixels(40, seed=77), opened.manifest.input)
    answer = live.screen(wire, [live.plan("")] * len(wire))
    kept = [n for n, one in enumerate(answer.decisions) if one.verdict.value == "accept"]
    assert len(kept) >= count
    return wire[kept[:count]]


def test_clients_get_the_classifiers_own_probabilities_and_other_outputs(guarded: Guarded) -> None:
    wire = accepted_rows(guarded, 3)
    probabilities, features = guarded.bare(wire)
    with OpenInferenceClient(guarded.server.address, model="caffe") as client:
        answers = client.infer({"images": wire})
        _, outputs = client.metadata()
    assert np.array_equal(answers["prob"], probabilities)
    assert np.array_equal(answers["flat"], features)
    assert {(one.name, one.shape) for one in outputs} == {("prob", (-1, 2)), ("flat", (-1, 12))}
    body = {
        "inputs": [
            {"name": "images", "datatype": "FP32", "shape": list(wire.shape),
             "data": wire.ravel().tolist()}
        ]
    }  # fmt: skip
    found = httpx.post(f"{guarded.server.rest}/v2/models/caffe/infer", json=body).json()
    listed = {one["name"]: one["data"] for one in found["outputs"]}
    assert np.allclose(listed["prob"], probabilities.ravel())


def test_probabilities_are_not_softmaxed_again(guarded: Guarded, tmp_path: Path) -> None:
    """The native API and `screen` say what the model says: two classes, without --top-k."""
    photo = sorted(guarded.photos.iterdir())[0]
    opened = open_bundle(guarded.bundle, {user_signer().public})
    from firewall.decoding.decode import decode_image

    image = decode_image(photo.read_bytes(), opened.manifest.input, opened.manifest.preprocessing)
    [wanted], _ = guarded.bare(to_wire(image[None], opened.manifest.input))
    with Client(guarded.server.address) as client:
        [answer] = client.predict([photo])
    assert answer.verdict is Verdict.ACCEPT
    assert [one.probability for one in answer.labels] == pytest.approx(
        sorted(wanted.tolist(), reverse=True), abs=1e-5
    )
    done = command("predict", str(photo), "--address", guarded.server.address)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    line = json.loads(command("screen", str(photo), "--bundle", str(guarded.bundle)).stdout)
    assert line["probability"] == pytest.approx(float(wanted.max()), abs=1e-5)


def test_rounded_outputs_are_probabilities_and_other_outputs_are_withheld(
    guarded: Guarded,
) -> None:
    opened = open_bundle(guarded.bundle, {user_signer().public})
    live = load_guard(opened, Policy(outputs="rounded"))
    wire = accepted_rows(guarded, 4)
    answer = live.screen(wire, [live.plan("")] * len(wire))
    probabilities, _ = guarded.bare(wire)
    assert np.allclose(answer.outputs.sum(axis=1), 1.0, atol=1e-5)
    assert np.allclose(answer.outputs, probabilities, atol=0.011)
    assert not answer.others


def test_forgeries_of_the_file_are_refused(guarded: Guarded, tmp_path: Path) -> None:
    """Sent as tensors: what an attacker who does not know the guard makes of the file."""
    photo = str(sorted(guarded.photos.iterdir())[3])
    out = tmp_path / "forged.npy"
    done = command(
        "attack", str(guarded.file), photo, "--preset", "caffe-bgr", "--eps", "0.1",
        "--method", "apgd", "--out", str(out), "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["succeeded"]
    opened = open_bundle(guarded.bundle, {user_signer().public})
    from firewall.screening.preprocess import images_to_wire

    wire = images_to_wire(np.load(out)[None], opened.manifest.input)
    with (
        OpenInferenceClient(guarded.server.address, model="caffe") as client,
        pytest.raises(Refused),
    ):
        client.infer({"images": wire})


def test_the_bundle_is_attacked_and_evaluated_like_any_other(
    guarded: Guarded, tmp_path: Path
) -> None:
    photo = str(sorted(guarded.photos.iterdir())[5])
    done = command(
        "attack", str(guarded.bundle), photo, "--method", "adaptive", "--eps", "0.1",
        "--steps", "20", "--out", str(tmp_path / "forged.npy"), "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    opened = open_bundle(guarded.bundle, {user_signer().public})
    x = pixels(6, seed=5).transpose(0, 3, 1, 2).astype(np.float32) / 255
    result = evaluate(opened, x, np.zeros(6, np.int64), eps=0.05, suite="adaptive", steps=5)
    assert result["target"]["guarded"]
    refused = command(
        "attack", str(guarded.bundle), photo, "--mean", "1,2,3", "--out", str(tmp_path / "f.npy")
    )
    assert "--mean: does not apply" in refused.stderr


def test_a_folder_of_images_is_data_of_an_evaluation(guarded: Guarded, tmp_path: Path) -> None:
    """Its classes are the classifier's own answers where no folders name them."""
    few = photographs(tmp_path / "photos", 6, seed=12)
    for target, flags in ((guarded.bundle, ()), (guarded.file, ("--preset", "caffe-bgr"))):
        done = command(
            "evaluate", str(target), "--data", str(few), "--suite", "quick", "--steps", "2",
            "--queries", "5", "--out", str(tmp_path / target.name), "--json", *flags,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "own answers are taken for the classes" in done.stderr
        result = json.loads(done.stdout)
        assert result["n"] == 6
        assert result["clean"]["accuracy"]["value"] == 1.0
        # As the bundle promises, and not the command's own default.
        if target == guarded.bundle:
            assert result["policy"]["false_positive_rate"] == 0.05


def test_it_is_calibrated_anew_on_other_images(guarded: Guarded, tmp_path: Path) -> None:
    fewer = photographs(tmp_path / "photos", 40, seed=3)
    done = CliRunner().invoke(
        app, ["calibrate", str(guarded.bundle), str(fewer), "--out", str(tmp_path / "again")]
    )
    assert done.exit_code == 0, done.exception
    assert "calibrated on 40 images for a false-positive rate of 0.05" in done.stdout
    again = open_bundle(tmp_path / "again", {user_signer().public})
    before = open_bundle(guarded.bundle, {user_signer().public})
    assert again.files["model.onnx"] == before.files["model.onnx"]
    assert again.manifest.version == "2"
    guard_again = load_guard(again, Policy())
    assert guard_again.policy.false_positive_rate == 0.05


def test_an_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_classifier(
        tmp_path / "net.onnx",
        Kind(scale=255.0, datatype=TensorProto.UINT8, classes=1, ending=("Sigmoid", "Cast64")),
    )
    photos = photographs(tmp_path / "photos", 60)
    with monkeypatch.context() as patch:
        patch.setattr("firewall.train.guard_source.write_report", _interrupted)
        first = guard(file, photos, tmp_path / "made")
    assert first.exit_code == 130
    assert not (tmp_path / "made").exists()
    second = guard(file, photos, tmp_path / "made")
    assert second.exit_code == 0, second.exception
    assert "draft: done before" in second.stderr
    told = json.loads(second.stdout.splitlines()[-1])
    # Nobody asked for a rate: the best that 60 images can promise.
    assert told["false_positive_rate"] == 0.05
    opened = open_bundle(tmp_path / "made", {user_signer().public})
    assert opened.manifest.score_shape == (1,)
    assert opened.labels == ("0", "1")
    live = load_guard(opened, Policy(mode="monitor"))
    wire = to_wire(pixels(3, seed=8), opened.manifest.input)
    answer = live.screen(wire, [live.plan("")] * 3)
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    [wanted] = session.run(None, {"images": wire})
    assert answer.outputs.dtype == np.float64
    assert np.array_equal(answer.outputs, wanted)
    assert (answer.classes == (wanted[:, 0] > 0.5)).all()
    again = guard(file, photos, tmp_path / "made")
    assert isinstance(again.exception, ConfigError)
    assert "exists; name a new folder" in str(again.exception)


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_check_says_what_it_found_and_makes_nothing(tmp_path: Path) -> None:
    file = write_classifier(tmp_path / "net.onnx", Kind())
    photos = photographs(tmp_path / "photos", 30)
    done = command("guard", str(file), str(photos), "--preset", "zero-one", "--check")
    assert done.returncode == 0, done.stderr
    assert "'logits', 5 classes, logits" in done.stdout
    assert "0000.png" in done.stdout
    unknown = command("guard", str(file), str(photos), "--check")
    assert unknown.returncode == 2
    assert "--preset" in unknown.stderr
    assert "Traceback" not in unknown.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "photos"]


FACTORY = """
import torch


def load():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(8, 4),
    )


class Deciding(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = load()

    def forward(self, x):
        y = self.inner(x)
        return y if x.mean() > 0.2 else -y


def deciding():
    return Deciding()
"""


def test_a_torch_module_is_exported_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_model.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    photos = photographs(tmp_path / "photos", 30)
    done = command(
        "guard", "my_model:load", str(photos), "--preset", "imagenet", "--shape",
        f"3,{SIDE},{SIDE}", "--check", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["classes"] == 4
    assert told["input"]["mean"] == [0.485, 0.456, 0.406]
    deciding = command(
        "guard", "my_model:deciding", str(photos), "--preset", "zero-one", "--shape",
        f"3,{SIDE},{SIDE}", "--check",
    )  # fmt: skip
    assert "its export to ONNX answers otherwise" in deciding.stderr
    nowhere = command("guard", "my_model:load", str(photos), "--preset", "imagenet", "--check")
    assert "name it with --shape" in nowhere.stderr
