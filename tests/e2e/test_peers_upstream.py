"""The firewall in front of other projects' servers. Their environments take minutes: -m peers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from firewall.bundle.signing import user_signer
from firewall.client import Client, OpenInferenceClient, Verdict
from firewall.errors import FirewallError, Refused
from tests.support.peers import PREPARED, Prepared, running_peer
from tests.support.served import Served, served
from tests.support.tiny import CLASSES, SIDE, forged, wire, write_tiny_onnx

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1200)]

#: Rows of a request whose tensors, views among them, are over every peer's message limit.
LARGE_SIDE, LARGE_ROWS = 224, 16


@contextmanager
def guarded(
    running: Prepared, protocol: str, clean: np.ndarray, folder: Path, rate: str, *options: str
) -> Iterator[Served]:
    """The firewall, calibrated for a peer and in front of it."""
    folder.mkdir()
    np.savez(folder / "clean.npz", x=clean)
    url = running.url(protocol)
    done = subprocess.run(
        [
            sys.executable, "-m", "firewall", "guard", url, str(folder / "clean.npz"),
            "--preset", "zero-one", "--out", str(folder / "bundle"), "--false-positive-rate", rate,
            "--minutes", "0.01",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with served(
        folder / "bundle", user_signer(), folder,
        "--upstream", url, "--false-positive-rate", rate, *options,
    ) as firewall:  # fmt: skip
        yield firewall


@pytest.fixture(scope="module", params=sorted(PREPARED))
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prepared]:
    folder = tmp_path_factory.mktemp(request.param)
    net = write_tiny_onnx(folder / "net.onnx")
    with running_peer(request.param, net, folder, (3, SIDE, SIDE), CLASSES) as found:
        yield found


@pytest.fixture(scope="module", params=["grpc", "rest"])
def pair(
    request: pytest.FixtureRequest, running: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Served]]:
    """A server's gRPC address, and the firewall in front of it, which asks over gRPC or REST."""
    folder = tmp_path_factory.mktemp("guard") / request.param
    with guarded(running, request.param, wire(120, 1), folder, "0.05") as firewall:
        yield f"127.0.0.1:{running.port}", firewall


def test_accepted_answers_are_the_upstreams_bit_for_bit(pair: tuple[str, Served]) -> None:
    address, firewall = pair
    accepted = 0
    with (
        OpenInferenceClient(address, model="peer") as bare,
        OpenInferenceClient(firewall.address, model="peer") as guard,
    ):
        assert guard.ready()
        for seed in range(10):
            x = wire(2, 50 + seed)
            try:
                found = guard.infer({"image": x})
            except Refused:
                continue
            accepted += 1
            assert np.array_equal(found["logits"], bare.infer({"image": x})["logits"])
    assert accepted >= 6


def test_forgeries_are_refused_row_by_row(pair: tuple[str, Served]) -> None:
    with Client(pair[1].address) as client:
        found = client.predict(np.concatenate([wire(1, 50), forged(2)]))
    assert [prediction.verdict for prediction in found[1:]] == [Verdict.REJECT] * 2


def test_metadata_are_the_upstreams(pair: tuple[str, Served]) -> None:
    with OpenInferenceClient(pair[1].address, model="peer") as client:
        [source], [given] = client.metadata()
    assert (source.name, source.datatype, source.shape[1:]) == ("image", "FP32", (3, SIDE, SIDE))
    assert (given.name, given.shape[1:]) == ("logits", (CLASSES,))


@pytest.fixture(scope="module", params=["kserve", "mlserver"])
def large(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Prepared, Path]]:
    """A peer with its default message limits that takes photographs, and its network."""
    folder = tmp_path_factory.mktemp(f"large-{request.param}")
    net = write_tiny_onnx(folder / "net.onnx", LARGE_SIDE)
    shape = (3, LARGE_SIDE, LARGE_SIDE)
    with running_peer(request.param, net, folder, shape, CLASSES) as found:
        yield found, net


def photographs(rows: int, seed: int) -> np.ndarray:
    """[rows, 3, 224, 224] float32 in [0, 1]."""
    return wire(rows, seed).repeat(LARGE_SIDE // SIDE, axis=2).repeat(LARGE_SIDE // SIDE, axis=3)


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_a_batch_over_the_peers_message_limit_is_answered(
    protocol: str, large: tuple[Prepared, Path], tmp_path: Path
) -> None:
    """28.9 MB: sixteen rows, and two views of each."""
    running, net = large
    x = photographs(LARGE_ROWS, 7)
    with (
        OpenInferenceClient(f"127.0.0.1:{running.port}", model="peer") as bare,
        pytest.raises(FirewallError, match="larger than max"),
    ):
        bare.infer({"image": x})
    with (
        guarded(
            running, protocol, photographs(70, 1), tmp_path / "guard", "0.05", "--mode", "monitor"
        ) as firewall,
        OpenInferenceClient(firewall.address, model="peer", timeout=300) as client,
    ):
        assert client.ready()
        answered = client.infer({"image": x})["logits"]
        lines = (tmp_path / "guard" / "stderr.txt").read_text()
    session = ort.InferenceSession(net, providers=["CPUExecutionProvider"])
    assert np.allclose(answered, session.run(None, {"x": x})[0], atol=1e-4)
    # Nothing had to be found out by being refused.
    assert "too large" not in lines
