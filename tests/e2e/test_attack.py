"""`firewall attack` against files, bundles and live addresses."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from firewall.bundle.signing import Signer
from firewall.testing import images
from tests.support.command import command
from tests.support.served import Served
from tests.support.tiny import write_tiny_onnx


def attack(*arguments: str) -> subprocess.CompletedProcess[str]:
    return command("attack", *arguments)


def told(*arguments: str) -> dict[str, Any]:
    done = attack(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "image.npy"
    np.save(path, images(1, seed=5)[0].numpy())
    return path


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_onnx(tmp_path_factory.mktemp("net") / "net.onnx")


@pytest.mark.parametrize("method", ["apgd", "square", "physical", "optimise"])
def test_a_file(method: str, net: Path, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "forged.npy"
    aim = ("--to", "3", "--weight", "1") if method == "optimise" else ()
    found = told(
        str(net), str(image), "--method", method, "--eps", "0.2", "--shape", "3,32,32",
        "--steps", "30", "--out", str(out), *aim,
    )  # fmt: skip
    assert found["succeeded"]
    assert found["after"]["label"] != found["before"]["label"]
    delta = np.load(out) - np.load(image)
    assert float(np.abs(delta).max()) == pytest.approx(found["linf"], abs=1e-6)
    if method != "optimise":
        assert found["linf"] <= 0.2 + 1e-6
    if method == "physical":
        assert found["holds_under_views"] > 0.5
    if method == "square":
        assert 0 < found["queries"] <= 1000


def test_a_bundle_is_fooled_by_one_who_knows_it_only(
    tiny_path: Path, signer: Signer, image: Path, tmp_path: Path
) -> None:
    key = tmp_path / "signer.pub"
    key.write_text(signer.public)
    common = (str(tiny_path), str(image), "--eps", "0.1", "--trust", str(key),
              "--out", str(tmp_path / "forged.png"))  # fmt: skip
    oblivious = told(*common, "--method", "pgd")
    assert oblivious["after"]["refused"]
    assert not oblivious["succeeded"]
    knowing = told(*common, "--method", "adaptive", "--steps", "100")
    assert knowing["succeeded"]
    assert (tmp_path / "forged.png").stat().st_size > 0


@pytest.mark.parametrize("scheme", ["firewall", "grpc"])
@pytest.mark.parametrize("method", ["square", "hop-skip-jump"])
def test_a_live_address(
    scheme: str, method: str, server: Served, image: Path, tmp_path: Path
) -> None:
    before = len([one for one in server.events() if one.get("verdict") == "reject"])
    found = told(
        f"{scheme}://{server.address}/tiny", str(image), "--method", method, "--queries", "60",
        "--eps", "0.3", "--out", str(tmp_path / "forged.png"),
    )  # fmt: skip
    assert 0 < found["queries"] <= 60
    refused = len([one for one in server.events() if one.get("verdict") == "reject"]) - before
    # The forgery itself is sent once more, and may be refused as well.
    assert found["refusals"] <= refused <= found["refusals"] + 1
    assert not found["before"]["refused"]


def test_a_refusal_ends_the_trail(server: Served, image: Path, tmp_path: Path) -> None:
    found = told(
        f"firewall://{server.address}", str(image), "--method", "square", "--eps", "0.5",
        "--blocks", "--out", str(tmp_path / "forged.png"),
    )  # fmt: skip
    assert found["refusals"] <= 1


def test_transfer_sends_once(net: Path, server: Served, image: Path, tmp_path: Path) -> None:
    def asked() -> float:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{server.operations_port}/metrics"
        ) as response:
            text = response.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "grpc_server_started_total"
            and sample.labels["grpc_method"] == "ModelInfer"
        )

    before = asked()
    found = told(
        f"grpc://{server.address}/tiny", str(image), "--method", "transfer", "--eps", "0.1",
        "--surrogate", str(net), "--out", str(tmp_path / "forged.png"),
    )  # fmt: skip
    assert found["queries"] == 0
    # The image as it is, and the forgery: nothing while forging.
    assert asked() - before == 2


def test_the_linear_study(tmp_path: Path) -> None:
    out = tmp_path / "study.png"
    done = attack("--linear-study", "--eps", "0.1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert out.read_bytes().startswith(b"\x89PNG")
    assert "sign(w)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method", "magic"), "--method: 'magic'; expected one of fgsm"),
        (("--eps", "-1"), "--eps: -1.0; expected a positive, finite radius"),
        (("--norm", "l7"), "--norm: 'l7'; expected linf or l2"),
        (("--method", "pgd", "--to", "10"), "--to: 10; expected a class from 0 to 9"),
        (("--label", "77"), "--label: 77; expected a class from 0 to 9"),
        (("--method", "square", "--to", "1"), "--to: 'square' cannot be aimed"),
        (("--method", "optimise"), "--to: missing"),
        (("--method", "adaptive"), "this target has none"),
        (("--method", "transfer"), "--surrogate: missing"),
        (("--shape", "3,32"), "--shape: '3,32'; expected channels,height,width"),
        (("--shape", "3,8,8"), "--shape: height 8; input 'x' takes [any, 3, 32, 32]"),
        (("--out", "forged.tiff"), "--out: forged.tiff; expected a .png or .npy file"),
    ],
)
def test_a_wrong_request_is_one_line(
    arguments: tuple[str, ...], words: str, net: Path, image: Path, tmp_path: Path
) -> None:
    shape = () if "--shape" in arguments else ("--shape", "3,32,32")
    out = () if "--out" in arguments else ("--out", str(tmp_path / "forged.png"))
    done = attack(str(net), str(image), *shape, *out, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "forged.png").exists()


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("firewall://127.0.0.1:1/tiny", "127.0.0.1:1"),
        ("grpc://127.0.0.1:1/tiny", "127.0.0.1:1"),
        ("grpc://127.0.0.1:1", "names no model"),
        ("http://127.0.0.1:1/tiny", "expected firewall://host:port[/model]"),
        ("nothing.onnx", "nothing.onnx cannot be read"),
    ],
)
def test_a_target_that_is_none(target: str, words: str, image: Path, tmp_path: Path) -> None:
    done = attack(target, str(image), "--method", "square", "--out", str(tmp_path / "f.png"))
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "f.png").exists()
