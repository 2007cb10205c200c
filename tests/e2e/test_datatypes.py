"""Bundles that take half floats, and bytes with the channels last."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image

from firewall.bundle.signing import Signer
from firewall.bundle.spec import InputSpec
from firewall.bundle.store import Bundle, open_bundle
from firewall.screening.policy import Policy
from firewall.screening.preprocess import to_wire
from firewall.serve.server import Server
from firewall.wire import open_inference_pb2 as oip
from tests.e2e.test_triton_clients import Triton, image_client
from tests.support.in_process import served_with
from tests.support.rest import binary, split, tensor, values
from tests.support.served import call, details
from tests.support.tiny import CLASSES, build_tiny, pixels

RPC = "/inference.GRPCInferenceService/ModelInfer"
SPECS = {
    "FP16": InputSpec(name="image", datatype="FP16", channels=3, height=32, width=32),
    "UINT8": InputSpec(
        name="image", datatype="UINT8", layout="NHWC", channels=3, height=32, width=32, high=255.0
    ),
}
PICTURES = pixels(2, 20)


@pytest.fixture(scope="module", params=SPECS)
def bundle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, signer: Signer
) -> Bundle:
    place = tmp_path_factory.mktemp("bundles") / request.param.lower()
    build_tiny(place, signer, input_spec=SPECS[request.param])
    return open_bundle(place, {signer.public})


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Server]:
    with served_with(bundle, Policy(mode="monitor", false_positive_rate=0.05)) as running:
        yield running


@pytest.fixture
def batch(bundle: Bundle) -> np.ndarray:
    return to_wire(PICTURES, bundle.manifest.input)


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.rest_port}/v2/models/tiny"


def ask(server: Server, **request: Any) -> np.ndarray:
    message = oip.ModelInferRequest(model_name="tiny", **request)
    data = call(f"127.0.0.1:{server.grpc_port}", RPC, message.SerializeToString())
    answer = oip.ModelInferResponse.FromString(data)
    return np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(-1, CLASSES)


def header(batch: np.ndarray, **changes: Any) -> dict[str, Any]:
    entry = tensor(batch, **changes)
    return {key: entry[key] for key in ("name", "datatype", "shape")}


def test_descriptions(server: Server, bundle: Bundle) -> None:
    spec = bundle.manifest.input
    [found] = httpx.get(url(server)).json()["inputs"]
    assert found == {"name": "image", "datatype": spec.datatype, "shape": [-1, *spec.shape]}
    [found] = httpx.get(f"{url(server)}/config").json()["input"]
    assert found == {
        "name": "image", "data_type": f"TYPE_{spec.datatype}", "format": f"FORMAT_{spec.layout}",
        "dims": list(spec.shape),
    }  # fmt: skip


def test_every_way_to_send_a_batch(server: Server, bundle: Bundle, batch: np.ndarray) -> None:
    expected = ask(server, inputs=[header(batch)], raw_input_contents=[batch.tobytes()])
    assert expected.shape == (2, CLASSES)
    found = [
        values(httpx.post(f"{url(server)}/infer", json={"inputs": [tensor(batch, nested=nested)]}))
        for nested in (False, True)
    ]
    content, headers = binary(batch, tensor(batch), parameters={"binary_data_output": True})
    _, tail = split(httpx.post(f"{url(server)}/infer", content=content, headers=headers))
    found.append(np.frombuffer(tail, "<f4").reshape(-1, CLASSES))
    files = []
    for picture in PICTURES:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        files.append(buffer.getvalue())
    images = {"name": "image", "datatype": "BYTES", "shape": [2]}
    texts = [base64.b64encode(file).decode() for file in files]
    answer = httpx.post(f"{url(server)}/infer", json={"inputs": [images | {"data": texts}]})
    found.append(values(answer))
    contents = oip.InferTensorContents(bytes_contents=files)
    found.append(ask(server, inputs=[images | {"contents": contents}]))
    if bundle.manifest.input.datatype == "UINT8":
        contents = oip.InferTensorContents(uint_contents=batch.ravel().tolist())
        found.append(ask(server, inputs=[header(batch) | {"contents": contents}]))
    for other in found:
        np.testing.assert_array_equal(other, expected)


def test_tritons_clients(server: Server, batch: np.ndarray) -> None:
    expected = ask(server, inputs=[header(batch)], raw_input_contents=[batch.tobytes()])
    datatype = header(batch)["datatype"]
    for module, port in (
        (tritonclient.grpc, server.grpc_port),
        (tritonclient.http, server.rest_port),
    ):
        with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
            triton = Triton(module, client)
            result = client.infer("tiny", [triton.tensor(batch, datatype)])
            np.testing.assert_array_equal(result.as_numpy("logits"), expected)
            found = image_client(triton, "tiny", PICTURES / 255, 1)
        indices = [int(row[0].split(":")[1]) for row in found]
        assert indices == expected.argmax(1).tolist()


def test_values_that_the_type_does_not_have(
    server: Server, bundle: Bundle, batch: np.ndarray
) -> None:
    bad: dict[str, tuple[float, ...]] = {"UINT8": (256, -1, 0.5, 1e300), "FP16": (70000.0, 1e300)}
    datatype = bundle.manifest.input.datatype
    for value in bad[datatype]:
        data = batch.ravel().astype(float).tolist()
        data[7] = value
        answer = httpx.post(f"{url(server)}/infer", json={"inputs": [tensor(batch, data=data)]})
        assert answer.status_code == 400
        assert answer.json()["field"] == "inputs[0].data"


def test_half_floats_are_not_typed(server: Server, bundle: Bundle, batch: np.ndarray) -> None:
    if bundle.manifest.input.datatype != "FP16":
        pytest.skip("of half floats alone")
    contents = oip.InferTensorContents(fp32_contents=batch.ravel().astype(float))
    with pytest.raises(grpc.RpcError) as caught:
        ask(server, inputs=[header(batch) | {"contents": contents}])
    where = details(caught.value)["BadRequest"].field_violations[0].field
    assert where == "inputs[0].contents"
    assert "send it raw" in caught.value.details()
