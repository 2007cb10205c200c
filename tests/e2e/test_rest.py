"""The REST API by hand: the Open Inference Protocol with JSON and with the binary extension."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest

import firewall
from firewall.bundle.store import Bundle
from firewall.screening.compiled import CompiledGuard
from tests.support.rest import binary, check_public, split, tensor, values
from tests.support.served import Served
from tests.support.tiny import CLASSES, forged, wire

INFER = "/v2/models/tiny/infer"


@pytest.fixture(scope="module")
def http(server: Served) -> Iterator[httpx.Client]:
    def check(answer: httpx.Response) -> None:
        answer.read()
        check_public(answer)

    with httpx.Client(
        base_url=server.rest, timeout=20, event_hooks={"response": [check]}
    ) as client:
        yield client


@pytest.fixture(scope="module")
def expected(http: httpx.Client) -> np.ndarray:
    """The answer to `wire(1, 20)`."""
    answer = http.post(INFER, json={"inputs": [tensor(wire(1, 20))]})
    assert answer.status_code == 200
    return values(answer)


# --- health and descriptions --------------------------------------------------------------------


def test_health(http: httpx.Client) -> None:
    for path, body in (
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/tiny/ready", {"name": "tiny", "ready": True}),
        ("/v2/models/tiny/versions/1/ready", {"name": "tiny", "ready": True}),
    ):
        answer = http.get(path)
        assert (answer.status_code, answer.json()) == (200, body)


def test_server_metadata(http: httpx.Client) -> None:
    assert http.get("/v2").json() == {
        "name": "robustness-firewall",
        "version": firewall.__version__,
        "extensions": [
            "classification", "model_configuration", "statistics", "model_repository",
            "binary_tensor_data",
        ],
    }  # fmt: skip


@pytest.mark.parametrize("prefix", ["/v2/models/tiny", "/v2/models/tiny/versions/1"])
def test_model_metadata_and_configuration(prefix: str, http: httpx.Client) -> None:
    assert http.get(prefix).json() == {
        "name": "tiny",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 32, 32]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, CLASSES]}],
    }
    config = http.get(f"{prefix}/config").json()
    assert config["max_batch_size"] == 64
    assert config["input"] == [
        {"name": "image", "data_type": "TYPE_FP32", "format": "FORMAT_NCHW", "dims": [3, 32, 32]}
    ]
    [output] = config["output"]
    assert (output["name"], output["dims"]) == ("logits", [CLASSES])


def test_statistics_count_requests_and_rows(http: httpx.Client) -> None:
    def read(path: str) -> dict[str, int]:
        [found] = http.get(path).json()["model_stats"]
        assert (found["name"], found["version"]) == ("tiny", "1")
        return {
            "rows": found["inference_count"],
            "success": found["inference_stats"]["success"]["count"],
            "fail": found["inference_stats"]["fail"]["count"],
        }

    before = read("/v2/models/stats")
    http.post(INFER, json={"inputs": [tensor(wire(3, 20))]})
    bad = wire(1, 20)
    bad[0, 0, 0, 0] = 7
    http.post(INFER, json={"inputs": [tensor(bad)]})
    for path in ("/v2/models/stats", "/v2/models/tiny/stats", "/v2/models/tiny/versions/1/stats"):
        after = read(path)
        grown = {key: after[key] - before[key] for key in after}
        assert grown == {"rows": 3, "success": 1, "fail": 1}


def test_repository_index(http: httpx.Client) -> None:
    for answer in (http.post("/v2/repository/index"), http.get("/v2/repository/index")):
        assert answer.json() == [{"name": "tiny", "version": "1", "state": "READY", "reason": ""}]
    assert len(http.post("/v2/repository/index", json={"ready": True}).json()) == 1
    for wrong in ({"ready": 1}, [], "x"):
        assert http.post("/v2/repository/index", json=wrong).status_code == 400


def test_api_page_lists_every_path(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    page = http.get("/docs").text
    assert document["openapi"].startswith("3.1")
    assert "/v2/models/{model}/infer" in document["paths"]
    for path in document["paths"]:
        assert f"<code>{path}</code>" in page


# --- inference ----------------------------------------------------------------------------------


def test_answer_is_the_guards(http: httpx.Client, tiny: Bundle, expected: np.ndarray) -> None:
    compiled = CompiledGuard(tiny.files)
    both, _ = compiled.both(wire(1, 20))
    cheap = compiled.cheap(wire(1, 20)).logits
    raw = cheap - np.log(np.exp(cheap).sum(1, keepdims=True))
    assert min(np.abs(expected - both).max(), np.abs(expected - raw).max()) < 1e-3


@pytest.mark.parametrize("nested", [False, True])
def test_json_flat_and_nested(nested: bool, http: httpx.Client, expected: np.ndarray) -> None:
    answer = http.post(INFER, json={"id": "a-1", "inputs": [tensor(wire(1, 20), nested=nested)]})
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert {key: body[key] for key in ("model_name", "model_version", "id")} == {
        "model_name": "tiny", "model_version": "1", "id": "a-1",
    }  # fmt: skip
    assert answer.headers["x-request-id"] == "a-1"
    [output] = body["outputs"]
    assert (output["name"], output["datatype"]) == ("logits", "FP32")
    assert output["shape"] == [1, CLASSES]
    np.testing.assert_array_equal(values(answer), expected)


def test_version_in_the_path_and_keys_that_are_unknown(
    http: httpx.Client, expected: np.ndarray
) -> None:
    body = {"inputs": [tensor(wire(1, 20), unknown=1)], "later": {"x": [1]}}
    answer = http.post("/v2/models/tiny/versions/1/infer", json=body)
    np.testing.assert_array_equal(values(answer), expected)
    assert "id" not in answer.json()


def test_binary_in(http: httpx.Client, expected: np.ndarray) -> None:
    batch = wire(1, 20)
    content, headers = binary(batch, tensor(batch))
    answer = http.post(INFER, content=content, headers=headers)
    np.testing.assert_array_equal(values(answer), expected)


@pytest.mark.parametrize(
    "asked",
    [
        {"parameters": {"binary_data_output": True}},
        {"outputs": [{"name": "logits", "parameters": {"binary_data": True}}]},
        {"parameters": {"binary_data_output": True}, "outputs": [{"name": "logits"}]},
    ],
)
def test_binary_out(asked: dict[str, object], http: httpx.Client, expected: np.ndarray) -> None:
    answer = http.post(INFER, json={"inputs": [tensor(wire(1, 20))]} | asked)
    assert answer.headers["content-type"] == "application/octet-stream"
    body, tail = split(answer)
    [output] = body["outputs"]
    assert output["parameters"] == {"binary_data_size": 4 * CLASSES}
    assert "data" not in output
    np.testing.assert_array_equal(np.frombuffer(tail, "<f4").reshape(1, -1), expected)


def test_one_output_may_be_json_where_binary_is_the_default(http: httpx.Client) -> None:
    asked = {
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "logits", "parameters": {"binary_data": False}}, {"name": "logits"}],
    }
    body, tail = split(http.post(INFER, json={"inputs": [tensor(wire(1, 20))]} | asked))
    first, second = body["outputs"]
    assert len(first["data"]) == CLASSES
    np.testing.assert_array_equal(np.frombuffer(tail, "<f4"), np.array(first["data"], np.float32))
    assert second["parameters"] == {"binary_data_size": len(tail)}


def test_binary_both_ways(http: httpx.Client, expected: np.ndarray) -> None:
    batch = wire(1, 20)
    content, headers = binary(batch, tensor(batch), parameters={"binary_data_output": True})
    _, tail = split(http.post(INFER, content=content, headers=headers))
    np.testing.assert_array_equal(np.frombuffer(tail, "<f4").reshape(1, -1), expected)


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_compressed_bodies(
    encoding: str,
    compress: Callable[[bytes], bytes],
    http: httpx.Client,
    expected: np.ndarray,
) -> None:
    batch = wire(1, 20)
    text = json.dumps({"inputs": [tensor(batch)]}).encode()
    with_tail, headers = binary(batch, tensor(batch))
    for content, extra in ((text, {}), (with_tail, headers)):
        answer = http.post(
            INFER, content=compress(content), headers={"Content-Encoding": encoding} | extra
        )
        np.testing.assert_array_equal(values(answer), expected)


def test_refusal(http: httpx.Client) -> None:
    batch = np.concatenate([wire(1, 20), forged(2)])
    answer = http.post(INFER, json={"id": "req-9", "inputs": [tensor(batch)]})
    assert answer.status_code == 403
    assert answer.json() == {
        "error": "suspected adversarial input in rows 1, 2; request id req-9",
        "reason": "ADVERSARIAL_INPUT_SUSPECTED",
        "request_id": "req-9",
        "rows": [1, 2],
    }


def test_request_id_of_the_header_and_of_the_body(http: httpx.Client) -> None:
    body = {"inputs": [tensor(wire(1, 20))]}
    answer = http.post(INFER, json=body, headers={"X-Request-Id": "mine"})
    assert answer.headers["x-request-id"] == "mine"
    answer = http.post(INFER, json=body | {"id": "body"}, headers={"X-Request-Id": "mine"})
    assert answer.headers["x-request-id"] == "body"
    answer = http.post(INFER, json=body, headers={"X-Request-Id": "two words"})
    assert (answer.status_code, answer.json()["field"]) == (400, "x-request-id")
    assert len(answer.headers["x-request-id"]) == 32


def test_expect_100_continue(server: Served) -> None:
    """As curl sends it before bodies of a megabyte and more."""
    body = json.dumps({"inputs": [tensor(wire(1, 20))]}).encode()
    with socket.create_connection(("127.0.0.1", server.rest_port), 20) as connection:
        connection.sendall(
            f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
            "Expect: 100-continue\r\nConnection: close\r\n\r\n".encode()
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
