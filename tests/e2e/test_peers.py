"""Attacks on servers of other projects, and their clients as ours. Their environments take
minutes: run with -m peers.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from firewall.testing import images
from tests.e2e.test_attack import told
from tests.support.peers import KSERVE, MLSERVER, environment, peer
from tests.support.rest import tensor, values
from tests.support.served import Served
from tests.support.tiny import CLASSES, SIDE, forged, wire, write_tiny_onnx

KSERVE_CLIENT = Path(__file__).parents[1] / "support" / "kserve_client" / "client.py"

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


# --- their clients ------------------------------------------------------------------------------


@pytest.fixture
def expected(server: Served) -> np.ndarray:
    answer = httpx.post(
        f"{server.rest}/v2/models/tiny/infer", json={"inputs": [tensor(wire(1, 20))]}
    )
    assert answer.status_code == 200
    return values(answer)


def test_kserve_clients(server: Served, expected: np.ndarray, tmp_path: Path) -> None:
    python = environment("kserve", *KSERVE)
    np.save(tmp_path / "batch.npy", wire(1, 20))
    done = subprocess.run(
        [str(python), str(KSERVE_CLIENT), server.rest, server.address, str(tmp_path / "batch.npy")],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for protocol, answers in (("rest", 4), ("grpc", 2)):
        heard = found[protocol]
        assert [heard[key] for key in ("live", "ready", "model ready")] == [True] * 3
        assert len(heard["answers"]) == answers
        for answer in heard["answers"]:
            assert (answer["id"], answer["model"], answer["name"]) == (
                "kserve-1", "tiny", "logits",
            )  # fmt: skip
            np.testing.assert_array_equal(np.array(answer["logits"], np.float32), expected)
    text = "suspected adversarial input in row 1; request id kserve-1"
    assert found["grpc"]["refusal"] == ["PERMISSION_DENIED", text]
    assert found["grpc"]["shape"][0] == "INVALID_ARGUMENT"
    assert found["rest"]["refusal"][0] == 403
    assert found["rest"]["refusal"][1].startswith(text)
    assert found["rest"]["shape"][0] == 400
    assert "inputs[0].shape: [1, 1, 32, 32]" in found["rest"]["shape"][1]


@pytest.mark.parametrize("options", [(), ("--binary-data",)], ids=["json", "binary"])
@pytest.mark.parametrize("size", [1, 3])
def test_mlserver_infer(
    size: int, options: tuple[str, ...], server: Served, expected: np.ndarray, tmp_path: Path
) -> None:
    """Batches of requests from a file; `--batch-size` merges several into one."""
    python = environment("mlserver", *MLSERVER)
    batch = wire(1, 20)
    lines = [{"id": f"line-{number}", "inputs": [tensor(batch)]} for number in range(6)]
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = subprocess.run(
        [
            str(python.parent / "mlserver"), "infer", "--url", f"127.0.0.1:{server.rest_port}",
            "--model-name", "tiny", "--input-data-path", str(tmp_path / "requests.jsonl"),
            "--output-data-path", str(tmp_path / "answers.jsonl"), "--workers", "2",
            "--batch-size", str(size), *options,
        ],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert sorted(answer["parameters"]["batch_index"] for answer in answers) == list(range(6))
    for answer in answers:
        assert "error" not in answer, answer
        [output] = answer["outputs"]
        assert (output["name"], output["shape"]) == ("logits", [1, CLASSES])
        np.testing.assert_allclose(output["data"], expected[0], atol=1e-4)


def test_mlserver_infer_shows_a_refusal(server: Served, tmp_path: Path) -> None:
    python = environment("mlserver", *MLSERVER)
    line = json.dumps({"id": "bad", "inputs": [tensor(forged(1))]})
    (tmp_path / "requests.jsonl").write_text(line + "\n")
    done = subprocess.run(
        [
            str(python.parent / "mlserver"), "infer", "--url", f"127.0.0.1:{server.rest_port}",
            "--model-name", "tiny", "--input-data-path", str(tmp_path / "requests.jsonl"),
            "--output-data-path", str(tmp_path / "answers.jsonl"), "--workers", "1",
            "--retries", "1",
        ],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [answer] = [json.loads(one) for one in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert "suspected adversarial input in row 0; request id bad" in answer["error"]["msg"]
