"""The firewall in front of other projects' servers. Their environments take minutes: -m peers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from firewall.bundle.signing import user_signer
from firewall.client import Client, OpenInferenceClient, Verdict
from firewall.errors import Refused
from tests.support.peers import PREPARED, peer
from tests.support.served import Served, served
from tests.support.tiny import CLASSES, SIDE, forged, wire, write_tiny_onnx

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module", params=sorted(PREPARED))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Served]]:
    """A server's address, and the firewall in front of it."""
    folder = tmp_path_factory.mktemp(request.param)
    net = write_tiny_onnx(folder / "net.onnx")
    with peer(request.param, net, folder, (3, SIDE, SIDE), CLASSES) as address:
        url = f"grpc://{address}/peer"
        np.savez(folder / "clean.npz", x=wire(120, 1))
        done = subprocess.run(
            [
                sys.executable, "-m", "firewall", "calibrate", str(folder / "clean.npz"),
                "--upstream", url, "--out", str(folder / "bundle"),
                "--false-positive-rate", "0.05",
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        with served(
            folder / "bundle", user_signer(), folder,
            "--upstream", url, "--false-positive-rate", "0.05",
        ) as firewall:  # fmt: skip
            yield address, firewall


def test_accepted_answers_are_the_upstreams_bit_for_bit(pair: tuple[str, Served]) -> None:
    address, firewall = pair
    accepted = 0
    with (
        OpenInferenceClient(address, model="peer") as bare,
        OpenInferenceClient(firewall.address, model="peer") as guarded,
    ):
        assert guarded.ready()
        for seed in range(10):
            x = wire(2, 50 + seed)
            try:
                found = guarded.infer({"image": x})
            except Refused:
                continue
            accepted += 1
            assert np.array_equal(found["logits"], bare.infer({"image": x})["logits"])
    assert accepted >= 6


def test_forgeries_are_refused_row_by_row(pair: tuple[str, Served]) -> None:
    with Client(pair[1].address) as client:
        found = client.predict(np.concatenate([wire(1, 50), forged(2)]))
    assert [one.verdict for one in found[1:]] == [Verdict.REJECT] * 2


def test_metadata_are_the_upstreams(pair: tuple[str, Served]) -> None:
    with OpenInferenceClient(pair[1].address, model="peer") as client:
        [source], [given] = client.metadata()
    assert (source.name, source.datatype, source.shape[1:]) == ("image", "FP32", (3, SIDE, SIDE))
    assert (given.name, given.shape[1:]) == ("logits", (CLASSES,))
