"""`firewall guard` of a served model: what its answers allow, and what it costs the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from typer.testing import CliRunner

from firewall.bundle.signing import user_signer
from firewall.bundle.store import open_bundle
from firewall.cli.app import app
from firewall.cli.upstream import bundle_target
from firewall.errors import ConfigError
from firewall.screening.load import load_guard
from firewall.screening.policy import Policy
from firewall.screening.preprocess import to_wire
from firewall.upstream.client import Upstream
from firewall.upstream.settings import UpstreamSettings
from tests.support.command import command
from tests.support.onnx_files import SIDE, Kind, photographs, pixels, write_classifier
from tests.support.upstream_servers import Model, Running, grpc_server, rest_server

SERVERS = {"grpc": grpc_server, "rest": rest_server}
#: Probabilities of a Caffe model, as the server's clients see them.
KIND = Kind(bgr=True, scale=255.0, mean=(104.0, 117.0, 123.0), ending=("Softmax",))


@dataclass
class Behind:
    """A served model, its guard, and a stand-in of the same classes."""

    model: Model
    running: Running
    photos: Path
    stand_in: Path
    bundle: Path
    told: dict[str, Any]

    @property
    def url(self) -> str:
        if self.running.scheme == "grpc":
            return self.running.url
        return f"http://127.0.0.1:{self.running.port}/v2/models/cats"

    @contextmanager
    def client(self) -> Iterator[Upstream]:
        client = Upstream(UpstreamSettings.parse(self.url), input_name="image", output="logits")
        yield client
        client.close()


@pytest.fixture(scope="module", params=sorted(SERVERS))
def behind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Behind]:
    folder = tmp_path_factory.mktemp(request.param)
    file = write_classifier(folder / "cats.onnx", KIND)
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])

    def answer(x: np.ndarray) -> np.ndarray:
        [found] = session.run(None, {"images": x.astype(np.float32)})
        wide: np.ndarray = found.astype(np.float64)
        return wide

    model = Model(answer=answer, input_shape=(3, SIDE, SIDE), classes=5)
    photos = photographs(folder / "photos", 200)
    with SERVERS[request.param](model) as running:  # type: ignore[operator]
        made = Behind(model, running, photos, file, folder / "guard", {})
        done = CliRunner().invoke(
            app,
            ["guard", made.url, str(photos), "--preset", "caffe-bgr", "--surrogate", str(file),
             "--false-positive-rate", "0.05", "--minutes", "0.01", "--out", str(made.bundle),
             "--json"],
        )  # fmt: skip
        assert done.exit_code == 0, done.exception
        made.told = json.loads(done.stdout.splitlines()[-1])
        yield made


def test_a_stand_in_teaches_stages_and_lends_gradients_to_attackers(behind: Behind) -> None:
    manifest = open_bundle(behind.bundle, {user_signer().public}).manifest
    assert manifest.classifier.kind == "remote"
    assert (manifest.scores.activation, manifest.scores.datatype) == ("softmax", "FP64")
    assert "pixels" in {stage.name for stage in manifest.guard.stages}
    knowledge = {one["knowledge"] for one in behind.told["evaluation"]["attacks"]}
    assert knowledge == {"oblivious", "transfer", "black-box", "adaptive"}


def test_clean_traffic_costs_the_server_hardly_more_rows_than_it_has(behind: Behind) -> None:
    opened = open_bundle(behind.bundle, {user_signer().public})
    wire = to_wire(pixels(150, seed=40), opened.manifest.input)
    with behind.client() as client:
        live = load_guard(opened, Policy(), classifier=client)
        behind.model.batches.clear()
        answer = live.screen(wire, [live.plan("")] * len(wire))
    # A tenth is meant to go on to the two views; fifty images say so with an error of that size.
    assert sum(behind.model.batches) <= 1.6 * len(wire)
    assert answer.outputs.dtype == np.float64
    assert np.array_equal(answer.outputs, behind.model.answer(wire))
    assert sum(one.verdict.value == "accept" for one in answer.decisions) > 120


def test_every_command_takes_the_upstream(behind: Behind, tmp_path: Path) -> None:
    photo = str(sorted(behind.photos.iterdir())[0])
    where = ("--upstream", behind.url)
    bundle = str(behind.bundle)
    assert "good" in command("bundle", "verify", bundle).stdout
    assert "good" in command("bundle", "verify", bundle, *where).stdout
    line = json.loads(command("screen", photo, "--bundle", bundle, *where).stdout)
    assert 0 < line["probability"] <= 1
    alone = command("screen", photo, "--bundle", bundle)
    assert "say where it is served with --upstream" in alone.stderr
    np.savez(
        tmp_path / "clean.npz",
        x=pixels(4, seed=6).transpose(0, 3, 1, 2).astype(np.float32) / 255,
        y=np.zeros(4, np.int64),
    )
    evaluated = command(
        "evaluate", bundle, "--data", str(tmp_path / "clean.npz"), "--suite", "quick", "--queries",
        "20", "--steps", "3", "--out", str(tmp_path / "evaluation"), "--json", *where,
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr
    result = json.loads(evaluated.stdout)
    assert [one["name"] for one in result["attacks"]] == ["Square"]
    assert result["target"]["guarded"]
    assert any("no adaptive attack" in one for one in result["warnings"])
    static = command(
        "evaluate", bundle, "--data", str(tmp_path / "clean.npz"), "--suite", "static",
        "--out", str(tmp_path / "static"), *where,
    )  # fmt: skip
    assert "name a stand-in with --surrogate" in static.stderr
    forged = command(
        "attack", bundle, photo, "--method", "square", "--queries", "30", "--out",
        str(tmp_path / "forged.npy"), "--json", *where,
    )  # fmt: skip
    assert forged.returncode == 0, forged.stderr
    white = command(
        "attack", bundle, photo, "--method", "adaptive", "--steps", "3", "--surrogate",
        str(behind.stand_in), "--out", str(tmp_path / "forged.npy"), "--json", *where,
    )  # fmt: skip
    assert white.returncode == 0, white.stderr
    opened = open_bundle(behind.bundle, {user_signer().public})
    settings = UpstreamSettings.parse(behind.url)
    victim = bundle_target(opened, settings, [behind.stand_in]).victim(0.05)
    x = torch.from_numpy(pixels(8, seed=21).transpose(0, 3, 1, 2).astype(np.float32) / 255)
    with torch.no_grad():
        lent = victim.logits(x).softmax(dim=1).numpy()
    assert np.allclose(
        lent, behind.model.answer(to_wire(pixels(8, seed=21), opened.manifest.input)), atol=1e-4
    )
    again = command("calibrate", bundle, str(behind.photos), "--out", str(tmp_path / "new"), *where)
    assert again.returncode == 0, again.stderr
    monitor = command(
        "calibrate-monitor", str(behind.photos), "--bundle", bundle, "--requests", "1000", *where
    )
    assert "[[monitors]]" in monitor.stdout, monitor.stderr


def test_what_a_server_does_not_say_is_said_by_flags(behind: Behind, tmp_path: Path) -> None:
    """A server that describes nothing, as some do: input, output and shape are named."""
    arguments = ["guard", behind.url + "-unknown", str(behind.photos), "--preset", "caffe-bgr",
                 "--check", "--json"]  # fmt: skip
    model = behind.model
    if behind.running.scheme == "grpc":
        # The small server describes every model; where it is down, it describes none.
        arguments[1] = "grpc://127.0.0.1:1/cats"
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, ConfigError)
    assert "describe it with --input, --output and --shape" in str(done.exception)
    assert model.ready
