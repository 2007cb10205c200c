"""The real tritonclient against the real server: an existing client changes its port."""

from __future__ import annotations

import numpy as np
import pytest
import tritonclient.grpc as triton

from firewall.bundle.store import Bundle
from firewall.screening.compiled import CompiledGuard
from firewall.wire import open_inference_pb2 as oip
from tests.support.served import Served, call, details
from tests.support.tiny import CLASSES, forged, wire

INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture
def client(server: Served) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(server.address)


def infer(client: triton.InferenceServerClient, batch: np.ndarray, **options: object) -> object:
    tensor = triton.InferInput("image", list(batch.shape), "FP32")
    tensor.set_data_from_numpy(batch)
    return client.infer("tiny", [tensor], **options)


def test_live_ready_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert client.get_server_metadata(as_json=True)["name"] == "robustness-firewall"
    metadata = client.get_model_metadata("tiny", as_json=True)
    assert metadata["inputs"] == [
        {"name": "image", "datatype": "FP32", "shape": ["-1", "3", "32", "32"]}
    ]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": ["-1", "10"]}]


@pytest.mark.parametrize("rows", [1, 5, 20])
def test_accepted_answers_are_the_guards(
    rows: int, client: triton.InferenceServerClient, tiny: Bundle
) -> None:
    batch = wire(60, 50)
    compiled = CompiledGuard(tiny.files)
    for start in range(0, 60, rows):
        part = batch[start : start + rows]
        try:
            result = infer(client, part, request_id="abc", outputs=None)
        except triton.InferenceServerException as error:
            # One in twenty clean rows may be refused, and refuses its batch.
            assert "PERMISSION_DENIED" in str(error.status())
            continue
        found = result.as_numpy("logits")
        assert found.shape == (rows, CLASSES)
        assert result.get_response().id == "abc"
        both, _ = compiled.both(part)
        cheap = compiled.cheap(part).logits
        raw = cheap - np.log(np.exp(cheap).sum(1, keepdims=True))
        # Of each row: the ensemble's where it was doubted, the classifier's where it was not.
        gap = np.minimum(np.abs(found - both).max(1), np.abs(found - raw).max(1))
        assert gap.max() < 1e-3


def test_a_refusal_is_permission_denied_with_error_info(
    client: triton.InferenceServerClient,
) -> None:
    batch = np.concatenate([wire(1, 20), forged(2)])
    with pytest.raises(triton.InferenceServerException) as caught:
        infer(client, batch, request_id="req-7")
    error = caught.value
    assert error.status() == "StatusCode.PERMISSION_DENIED"
    assert error.message() == "suspected adversarial input in rows 1, 2; request id req-7"
    # tritonclient hides the gRPC error behind its own, which still knows it.
    info = details(error.__context__)["ErrorInfo"]
    assert (info.reason, info.domain) == ("ADVERSARIAL_INPUT_SUSPECTED", "firewall")
    assert dict(info.metadata) == {"request_id": "req-7"}


def test_typed_contents_are_the_same_as_raw_ones(server: Served) -> None:
    batch = wire(1, 20)
    header = {"name": "image", "datatype": "FP32", "shape": batch.shape}
    raw = oip.ModelInferRequest(
        model_name="tiny",
        inputs=[oip.ModelInferRequest.InferInputTensor(**header)],
        raw_input_contents=[batch.tobytes()],
    )
    typed = oip.ModelInferRequest(
        model_name="tiny",
        inputs=[
            oip.ModelInferRequest.InferInputTensor(
                **header, contents=oip.InferTensorContents(fp32_contents=batch.ravel())
            )
        ],
    )
    answers = [
        oip.ModelInferResponse.FromString(call(server.address, INFER, one.SerializeToString()))
        for one in (raw, typed)
    ]
    assert answers[0] == answers[1]
    assert answers[0].outputs[0].shape == [1, CLASSES]
