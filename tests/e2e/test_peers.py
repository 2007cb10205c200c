"""Attacks on servers of other projects. Their environments take minutes: run with -m peers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from firewall.testing import images
from tests.e2e.test_attack import told
from tests.support.peers import peer
from tests.support.tiny import CLASSES, SIDE, write_tiny_onnx

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_onnx(tmp_path_factory.mktemp("net") / "net.onnx")


@pytest.fixture(scope="module")
def address(net: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = tmp_path_factory.mktemp("peer")
    with peer("mlserver", net, place, (3, SIDE, SIDE), CLASSES) as found:
        yield found


@pytest.mark.parametrize(
    ("method", "queries"), [("square", 300), ("hop-skip-jump", 300), ("nes", 800)]
)
def test_a_black_box_attack_on_mlserver(
    method: str, queries: int, address: str, tmp_path: Path
) -> None:
    image = tmp_path / "image.npy"
    np.save(image, images(1, seed=5)[0].numpy())
    out = tmp_path / "forged.npy"
    found = told(
        f"grpc://{address}/peer", str(image), "--method", method, "--queries", str(queries),
        "--eps", "0.3", "--out", str(out),
    )  # fmt: skip
    assert found["succeeded"]
    assert found["after"]["label"] != found["before"]["label"]
    assert 0 < found["queries"] <= queries
    assert found["refusals"] == 0
    assert float(np.abs(np.load(out) - np.load(image)).max()) <= 0.3 + 1e-6


def test_a_transfer_to_mlserver(net: Path, address: str, tmp_path: Path) -> None:
    image = tmp_path / "image.npy"
    np.save(image, images(1, seed=5)[0].numpy())
    found = told(
        f"grpc://{address}/peer", str(image), "--method", "transfer", "--surrogate", str(net),
        "--eps", "0.2", "--out", str(tmp_path / "forged.png"),
    )  # fmt: skip
    assert found["succeeded"]
    assert found["queries"] == 0
