"""A guard in front of a classifier that is served elsewhere: a real server, and not ours to see."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

from firewall.bundle.signing import Signer, user_signer
from firewall.cli.app import app
from firewall.client.open_inference import OpenInferenceClient
from firewall.errors import ConfigError, NotReady, Refused
from tests.support.served import FREE_PORTS, Served, served
from tests.support.tiny import CLASSES, SIDE, forged, wire, write_tiny_onnx
from tests.support.upstream_servers import Binary, Model, rest_server

ROWS = 240


@dataclass
class Sidecar:
    """A classifier, a guard around it, and where the bundle lies."""

    upstream: Served
    bundle: Path
    guard: Served
    model: str


def arguments(url: str, folder: Path, *options: str) -> list[str]:
    np.savez(folder / "clean.npz", x=wire(ROWS, 1))
    return [
        "guard", url, str(folder / "clean.npz"), "--preset", "zero-one", "--out",
        str(folder / "bundle"), "--false-positive-rate", "0.05", "--minutes", "0.01", *options,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def sidecar(
    tiny_path: Path, signer: Signer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("sidecar")
    first, second = folder / "upstream", folder / "guard"
    first.mkdir()
    second.mkdir()
    with served(tiny_path, signer, first, "--mode", "off") as upstream:
        url = f"grpc://{upstream.address}/tiny"
        done = subprocess.run(
            [sys.executable, "-m", "firewall", *arguments(url, folder)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        with served(
            folder / "bundle", user_signer(), second,
            "--upstream", url, "--false-positive-rate", "0.05",
        ) as guard:  # fmt: skip
            wait_ready(guard, True)
            yield Sidecar(upstream, folder / "bundle", guard, "tiny")


def ready(one: Served) -> bool:
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{one.operations_port}/readyz", timeout=5
        ) as found:
            return bool(found.status == 200)
    except urllib.error.HTTPError:
        return False


def wait_ready(one: Served, wanted: bool) -> None:
    for _ in range(200):
        if ready(one) is wanted:
            return
        time.sleep(0.1)
    raise AssertionError(f"ready is not {wanted}")


def answers(one: Served, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    with OpenInferenceClient(one.address, model="tiny") as client:
        found: npt.NDArray[np.float32] = client.infer({"image": x})["logits"]
        return found


def test_clients_get_the_classifiers_own_answers(sidecar: Sidecar) -> None:
    accepted = 0
    for seed in range(10, 20):
        x = wire(1, seed)
        try:
            guarded = answers(sidecar.guard, x)
        except Refused:
            continue
        accepted += 1
        # Bit for bit: the row as it came goes to the classifier as it came.
        assert np.array_equal(guarded, answers(sidecar.upstream, x))
    assert accepted >= 8


def test_a_checkerboard_is_refused(sidecar: Sidecar) -> None:
    with pytest.raises(Refused):
        answers(sidecar.guard, forged(1))


def test_what_it_says_of_itself_is_the_classifiers(sidecar: Sidecar) -> None:
    with (
        OpenInferenceClient(sidecar.guard.address, model="tiny") as guard,
        OpenInferenceClient(sidecar.upstream.address, model="tiny") as bare,
    ):
        assert guard.metadata() == bare.metadata()
    card = (sidecar.bundle / "MODEL_CARD.md").read_text()
    assert "served elsewhere" in card


def test_a_dead_upstream_is_unavailable_and_comes_back(
    sidecar: Sidecar, tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    guarding = tmp_path / "guarding"
    guarding.mkdir()
    x = wire(1, 10)
    with served(tiny_path, signer, folder, "--mode", "off") as first:
        port = first.grpc_port
        with served(
            sidecar.bundle, user_signer(), guarding,
            "--upstream", f"grpc://127.0.0.1:{port}/tiny", "--mode", "monitor",
            "--false-positive-rate", "0.05",
        ) as guard:  # fmt: skip
            wait_ready(guard, True)
            before = answers(guard, x)
            first.process.kill()
            first.process.wait(30)
            with pytest.raises(NotReady, match="the classifier behind"):
                answers(guard, x)
            wait_ready(guard, False)
            again = tmp_path / "again"
            again.mkdir()
            with served(tiny_path, signer, again, "--mode", "off", "--grpc-port", str(port)):
                wait_ready(guard, True)
                assert np.array_equal(answers(guard, x), before)


def test_another_classifier_is_not_the_one_that_was_calibrated_for(
    sidecar: Sidecar, tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    folder, guarding = tmp_path / "own", tmp_path / "guarding"
    folder.mkdir()
    guarding.mkdir()
    (tmp_path / "policy.toml").write_text('mode = "off"\noutputs = "label"\n')
    with (
        served(tiny_path, signer, folder, "--policy", str(tmp_path / "policy.toml")) as other,
        served(
            sidecar.bundle, user_signer(), guarding,
            "--upstream", f"grpc://{other.address}/tiny", "--false-positive-rate", "0.05",
        ) as guard,
    ):  # fmt: skip
        time.sleep(1.5)
        assert not ready(guard)
        with pytest.raises(NotReady, match="cannot be asked"):
            answers(guard, wire(1, 10))
    assert "answers other than the classifier" in (guarding / "stderr.txt").read_text()


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("http://host/model", [], "expected grpc://host:port/model"),
        ("grpc://127.0.0.1:1/tiny", [], "does not describe model 'tiny'"),
        ("{}", ["--false-positive-rate", "0.001"], "240 cannot promise a false-positive rate"),
        ("{}", ["--range", "0"], "--range: '0'; expected 2 numbers"),
        ("{}", ["--mean", "0.5,1"], "--mean: '0.5,1'; expected 1 or 3 or 4 numbers"),
    ],
)
def test_what_cannot_be_calibrated_is_said(
    url: str, options: list[str], words: str, sidecar: Sidecar, tmp_path: Path
) -> None:
    there = f"grpc://{sidecar.upstream.address}/tiny"
    done = CliRunner().invoke(app, arguments(url.format(there), tmp_path, *options))
    assert isinstance(done.exception, ConfigError)
    assert words in str(done.exception)
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_and_its_upstream_belong_together(
    sidecar: Sidecar, tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    for bundle, key, options, words in (
        (sidecar.bundle, user_signer(), [], "say where it is served with --upstream"),
        (tiny_path, signer, ["--upstream", "grpc://127.0.0.1:1/x"], "has its classifier inside"),
    ):
        (tmp_path / "key.pub").write_text(key.public + "\n")
        done = subprocess.run(
            [
                sys.executable, "-m", "firewall", "serve", str(bundle),
                "--trust", str(tmp_path / "key.pub"), *FREE_PORTS, *options,
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode != 0
        assert words in done.stderr


@pytest.mark.parametrize("binary", ["listed", "none"])
def test_a_rest_upstream_is_calibrated_guarded_and_followed(binary: Binary, tmp_path: Path) -> None:
    session = ort.InferenceSession(
        write_tiny_onnx(tmp_path / "net.onnx").read_bytes(), providers=["CPUExecutionProvider"]
    )

    def answer(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        [logits] = session.run(None, {"x": x})
        found: npt.NDArray[np.float32] = logits
        return found

    model = Model(answer=answer, input_shape=(3, SIDE, SIDE), classes=CLASSES)
    (tmp_path / "token").write_text("of-the-file")
    with rest_server(model, binary=binary) as running:
        done = CliRunner().invoke(
            app,
            [
                *arguments(f"{running.scheme}://127.0.0.1:{running.port}/v2/models/cats", tmp_path),
                "--upstream-token-file", str(tmp_path / "token"),
            ],
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        assert {headers["authorization"] for headers in model.headers} == {"Bearer of-the-file"}
        with served(
            tmp_path / "bundle", user_signer(), tmp_path,
            "--upstream", running.url, "--false-positive-rate", "0.05",
        ) as guard:  # fmt: skip
            wait_ready(guard, True)
            accepted = 0
            with OpenInferenceClient(guard.address, model="cats") as client:
                for seed in range(10, 20):
                    x = wire(1, seed)
                    try:
                        guarded = client.infer({"image": x})["logits"]
                    except Refused:
                        continue
                    accepted += 1
                    assert np.allclose(guarded, answer(x), atol=1e-5)
                assert accepted >= 8
                with pytest.raises(Refused):
                    client.infer({"image": forged(1)})
                model.ready = False
                wait_ready(guard, False)
                # It comes back as another model.
                model.answer = lambda x: answer(x)[:, :2]
                model.ready = True
                for _ in range(50):
                    if "calibrated with 10" in (tmp_path / "stderr.txt").read_text():
                        break
                    time.sleep(0.1)
                assert not ready(guard)
                with pytest.raises(NotReady, match="cannot be asked"):
                    client.infer({"image": wire(1, 10)})
    lines = (tmp_path / "stderr.txt").read_text()
    assert lines.count("upstream not ready: answers 2 classes; calibrated with 10") == 1
    assert set(model.forms) == {"binary" if binary == "listed" else "json"}


def test_metrics_and_audit_are_as_ever(sidecar: Sidecar) -> None:
    answers_before = len(sidecar.guard.events())
    with pytest.raises(Refused):
        answers(sidecar.guard, forged(1))
    for _ in range(50):
        if len(sidecar.guard.events()) > answers_before:
            break
        time.sleep(0.1)
    last = sidecar.guard.events()[-1]
    assert last["verdict"] == "reject"
    assert last["reasons"]
