"""Encoded images over the Open Inference Protocol answer as they do over the native API."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from firewall.bundle.store import Bundle
from firewall.client import Client, Prediction
from firewall.screening.policy import Policy
from firewall.serve.server import Server
from firewall.wire import open_inference_pb2 as oip
from tests.support.image_files import encoded
from tests.support.in_process import served_with
from tests.support.rest import binary, tensor
from tests.support.served import call, details
from tests.support.tiny import CLASSES, forged, wire

RPC = "/inference.GRPCInferenceService/ModelInfer"
INFER = "/v2/models/tiny/infer"
IMAGES = [
    encoded(64, 48, "JPEG"),
    encoded(32, 32, "PNG"),
    encoded(50, 40, "WEBP"),
    encoded(200, 90, "JPEG", progressive=True),
    encoded(40, 40, "PNG", mode="L"),
]
HEADER: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [len(IMAGES)]}
Answered = tuple[np.ndarray, list[str]]


@pytest.fixture(scope="module")
def server(tiny: Bundle) -> Iterator[Server]:
    """Flags and answers."""
    policy = Policy(mode="monitor", false_positive_rate=0.05)
    with served_with(tiny, policy) as running:
        yield running


@pytest.fixture(scope="module")
def expected(server: Server) -> list[Prediction]:
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        return list(client.predict(IMAGES, top_k=CLASSES))


def joined(images: list[bytes]) -> bytes:
    return b"".join(len(image).to_bytes(4, "little") + image for image in images)


def ask_grpc(server: Server, **request: Any) -> Answered:
    message = oip.ModelInferRequest(model_name="tiny", **request)
    data = call(f"127.0.0.1:{server.grpc_port}", RPC, message.SerializeToString())
    answer = oip.ModelInferResponse.FromString(data)
    [raw], [output] = answer.raw_output_contents, answer.outputs
    verdicts = answer.parameters["firewall_verdict"].string_param
    return np.frombuffer(raw, "<f4").reshape(output.shape), verdicts.split(",")


def grpc_raw(server: Server) -> Answered:
    return ask_grpc(server, inputs=[HEADER], raw_input_contents=[joined(IMAGES)])


def grpc_raw_with_a_dimension_of_one(server: Server) -> Answered:
    header = HEADER | {"shape": [len(IMAGES), 1]}
    return ask_grpc(server, inputs=[header], raw_input_contents=[joined(IMAGES)])


def grpc_typed(server: Server) -> Answered:
    contents = oip.InferTensorContents(bytes_contents=IMAGES)
    return ask_grpc(server, inputs=[HEADER | {"contents": contents}])


def ask_rest(server: Server, **options: Any) -> Answered:
    answer = httpx.post(f"http://127.0.0.1:{server.rest_port}{INFER}", timeout=20, **options)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    [output] = body["outputs"]
    found = np.array(output["data"], np.float32).reshape(output["shape"])
    return found, body["parameters"]["firewall_verdict"].split(",")


def rest_json(server: Server) -> Answered:
    data = [base64.b64encode(image).decode() for image in IMAGES]
    return ask_rest(server, json={"inputs": [HEADER | {"data": data}]})


def rest_binary(server: Server) -> Answered:
    content, headers = binary(joined(IMAGES), HEADER)
    return ask_rest(server, content=content, headers=headers)


def triton_input(module: Any) -> Any:
    found = module.InferInput("image", [len(IMAGES)], "BYTES")
    found.set_data_from_numpy(np.array(IMAGES, object))
    return found


def triton_grpc(server: Server) -> Answered:
    client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
    result = client.infer("tiny", [triton_input(tritonclient.grpc)])
    parameters = result.get_response().parameters
    return result.as_numpy("logits"), parameters["firewall_verdict"].string_param.split(",")


def triton_http(server: Server) -> Answered:
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.rest_port}") as client:
        result = client.infer("tiny", [triton_input(tritonclient.http)])
    parameters = result.get_response()["parameters"]
    return result.as_numpy("logits"), parameters["firewall_verdict"].split(",")


@pytest.mark.parametrize(
    "ask",
    [
        grpc_raw, grpc_raw_with_a_dimension_of_one, grpc_typed, rest_json, rest_binary,
        triton_grpc, triton_http,
    ],
)  # fmt: skip
def test_same_answer_as_the_native_api(
    ask: Callable[[Server], Answered], server: Server, expected: list[Prediction]
) -> None:
    logits, verdicts = ask(server)
    assert verdicts == [one.verdict.value for one in expected]
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    for row, one in enumerate(expected):
        assert len(one.labels) == CLASSES
        for label in one.labels:
            assert probabilities[row, label.index] == pytest.approx(
                label.probability, rel=1e-3, abs=1e-6
            )


@pytest.mark.parametrize(
    ("image", "shape", "field", "words"),
    [
        (IMAGES[0], [2], "inputs[0].shape", "[2]; 1 images have shape [1]"),
        (IMAGES[0], [], "inputs[0].shape", "[]; 1 images"),
        (IMAGES[0], [1, 3, 32, 32], "inputs[0].shape", "[1, 3, 32, 32]; 1 images"),
        (b"", [1], "BODY[0]", "neither a JPEG, a PNG nor a WebP"),
        (IMAGES[0][:300], [1], "BODY[0]", "damaged or truncated"),
    ],
)
def test_images_that_are_wrong(
    image: bytes, shape: list[int], field: str, words: str, server: Server
) -> None:
    header = HEADER | {"shape": shape}
    address = f"127.0.0.1:{server.grpc_port}"
    typed = oip.InferTensorContents(bytes_contents=[image])
    for body, request in (
        ("raw_input_contents[0]", {"inputs": [header], "raw_input_contents": [joined([image])]}),
        ("inputs[0].contents.bytes_contents", {"inputs": [header | {"contents": typed}]}),
    ):
        message = oip.ModelInferRequest(model_name="tiny", **request)
        with pytest.raises(grpc.RpcError) as caught:
            call(address, RPC, message.SerializeToString())
        where = details(caught.value)["BadRequest"].field_violations[0].field
        assert where == field.replace("BODY", body)
        assert words in caught.value.details()
    content, headers = binary(joined([image]), header)
    text = json.dumps({"inputs": [header | {"data": [base64.b64encode(image).decode()]}]})
    for body, answer in (
        ("inputs[0] (binary data)", ask_bad(server, content=content, headers=headers)),
        ("inputs[0].data", ask_bad(server, content=text)),
    ):
        assert answer["field"] == field.replace("BODY", body)
        assert words in answer["error"]


def ask_bad(server: Server, **options: Any) -> dict[str, Any]:
    answer = httpx.post(f"http://127.0.0.1:{server.rest_port}{INFER}", timeout=20, **options)
    assert answer.status_code == 400, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x05\0\0", "ends within the length of an element"),
        (b"\x05\0\0\0abcd", "element 0 is shorter than its length says"),
        (b"\xff\xff\xff\xff", "element 0 is shorter than its length says"),
        (bytes(4 * 65), "more than 64 elements"),
        (b"", "0 rows; expected 1 to 64"),
    ],
)
def test_elements_that_are_cut_wrong(data: bytes, words: str, server: Server) -> None:
    header = HEADER | {"shape": [0]}
    message = oip.ModelInferRequest(model_name="tiny", inputs=[header], raw_input_contents=[data])
    with pytest.raises(grpc.RpcError) as caught:
        call(f"127.0.0.1:{server.grpc_port}", RPC, message.SerializeToString())
    assert words in caught.value.details()
    content, headers = binary(data, header)
    assert words in ask_bad(server, content=content, headers=headers)["error"]


# --- what the policy adds -----------------------------------------------------------------------

MIXED = np.concatenate([wire(1, 20), forged(2), wire(1, 21)])


def ask_both(
    server: Server, batch: np.ndarray, **asked: Any
) -> Iterator[tuple[Any, dict[str, str]]]:
    """Values of the first output and response parameters: over gRPC, JSON, and binary REST."""
    header = {"name": "image", "datatype": "FP32", "shape": batch.shape}
    message = oip.ModelInferRequest(
        model_name="tiny", inputs=[header], raw_input_contents=[batch.tobytes()]
    )
    data = call(f"127.0.0.1:{server.grpc_port}", RPC, message.SerializeToString())
    answer = oip.ModelInferResponse.FromString(data)
    raw = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(len(batch), -1)
    yield raw, {key: one.string_param for key, one in answer.parameters.items()}
    url = f"http://127.0.0.1:{server.rest_port}{INFER}"
    body = httpx.post(url, json={"inputs": [tensor(batch)]}, timeout=20).json()
    listed = np.array(body["outputs"][0]["data"], object).reshape(len(batch), -1)
    yield listed, body.get("parameters", {})
    content, headers = binary(batch, tensor(batch), parameters={"binary_data_output": True})
    response = httpx.post(url, content=content, headers=headers, timeout=20)
    size = int(response.headers["inference-header-content-length"])
    tail = np.frombuffer(response.content[size:], "<f4").reshape(len(batch), -1)
    yield tail, json.loads(response.content[:size]).get("parameters", {})


def test_rows_each_withholds_what_is_suspected(tiny: Bundle) -> None:
    policy = Policy(false_positive_rate=0.05, rows="each")
    with served_with(tiny, policy) as server:
        raw, listed, tail = ask_both(server, MIXED)
        for _, parameters in (raw, listed, tail):
            assert parameters == {"firewall_verdict": "accept,reject,reject,accept"}
        for values, _ in (raw, tail):
            assert np.isnan(values[1:3]).all()
            assert np.isfinite(values[[0, 3]]).all()
        # JSON has no NaN.
        assert (listed[0][1:3] == None).all()  # noqa: E711
        np.testing.assert_array_equal(listed[0][[0, 3]].astype(np.float32), raw[0][[0, 3]])
        # And no class of them is named.
        for module, port in (
            (tritonclient.grpc, server.grpc_port),
            (tritonclient.http, server.rest_port),
        ):
            client = module.InferenceServerClient(f"127.0.0.1:{port}")
            given = module.InferInput("image", list(MIXED.shape), "FP32")
            given.set_data_from_numpy(MIXED)
            asked = module.InferRequestedOutput("logits", class_count=2)
            found = client.infer("tiny", [given], outputs=[asked]).as_numpy("logits")
            client.close()
            assert found.shape == (4, 2)
            assert [list(row) for row in found[1:3]] == [[b"nan:-1:"] * 2] * 2
            assert all(one.count(b":class ") == 1 for one in found[[0, 3]].ravel())
        # A batch without a suspect says so too.
        _, parameters = next(ask_both(server, wire(1, 20)))
        assert parameters == {"firewall_verdict": "accept"}


def test_rows_all_says_nothing_of_verdicts(tiny: Bundle) -> None:
    with served_with(tiny, Policy(false_positive_rate=0.05)) as server:
        for values, parameters in ask_both(server, wire(1, 20)):
            assert parameters == {}
            assert np.isfinite(values.astype(np.float32)).all()


def test_monitor_mode_flags_and_answers(tiny: Bundle) -> None:
    with served_with(tiny, Policy(mode="monitor", false_positive_rate=0.05)) as server:
        for values, parameters in ask_both(server, MIXED):
            assert parameters == {"firewall_verdict": "accept,flag,flag,accept"}
            assert np.isfinite(values.astype(np.float32)).all()


def test_p_values_are_disclosed_where_the_policy_says_so(tiny: Bundle) -> None:
    policy = Policy(mode="monitor", false_positive_rate=0.05, disclose="diagnostics")
    with served_with(tiny, policy) as server:
        for _, parameters in ask_both(server, MIXED):
            assert set(parameters) == {"firewall_verdict", "firewall_p_value"}
            p_values = [float(one) for one in parameters["firewall_p_value"].split(",")]
            assert p_values[1] == p_values[2] == pytest.approx(1 / 121, rel=1e-4)
            assert min(p_values[0], p_values[3]) > 0.05
        url = f"http://127.0.0.1:{server.rest_port}/firewall/v1/models/tiny:screen"
        native = {"datatype": "FP32", "shape": list(MIXED.shape), "data": MIXED.ravel().tolist()}
        decisions = httpx.post(url, json={"tensor": native}, timeout=20).json()["decisions"]
        for decision, p_value in zip(decisions, p_values, strict=True):
            assert decision["diagnostics"]["p_value"] == pytest.approx(p_value, rel=1e-4)
            assert "noise-floor" in decision["diagnostics"]["statistics"]
            assert isinstance(decision["diagnostics"]["escalated"], bool)
