"""Triton's own clients, over gRPC and over HTTP, and what its image_client.py does with them."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from tests.support.image_files import encoded
from tests.support.served import Served
from tests.support.tiny import CLASSES, forged, wire

BATCH = wire(1, 20)


@dataclass
class Triton:
    """One of the two clients."""

    module: Any
    client: Any

    def tensor(self, batch: np.ndarray, datatype: str = "FP32", **options: Any) -> Any:
        found = self.module.InferInput("image", list(batch.shape), datatype)
        found.set_data_from_numpy(batch, **options)
        return found

    def infer(self, batch: np.ndarray = BATCH, **options: Any) -> Any:
        return self.client.infer("tiny", [self.tensor(batch)], **options)


@pytest.fixture
def rpc(server: Served) -> Iterator[Triton]:
    with tritonclient.grpc.InferenceServerClient(server.address) as client:
        yield Triton(tritonclient.grpc, client)


@pytest.fixture
def http(server: Served) -> Iterator[Triton]:
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.rest_port}") as client:
        yield Triton(tritonclient.http, client)


@pytest.fixture(params=["rpc", "http"])
def triton(request: pytest.FixtureRequest) -> Triton:
    found: Triton = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def expected(server: Served) -> np.ndarray:
    with tritonclient.grpc.InferenceServerClient(server.address) as client:
        found: np.ndarray = Triton(tritonclient.grpc, client).infer().as_numpy("logits")
        return found


# --- both ---------------------------------------------------------------------------------------


def test_live_and_ready(triton: Triton) -> None:
    assert triton.client.is_server_live()
    assert triton.client.is_server_ready()
    assert triton.client.is_model_ready("tiny")
    assert triton.client.is_model_ready("tiny", "1")


def test_infer(triton: Triton, expected: np.ndarray) -> None:
    result = triton.infer(request_id="triton-1", model_version="1")
    np.testing.assert_array_equal(result.as_numpy("logits"), expected)
    response = result.get_response()
    assert (response["id"] if isinstance(response, dict) else response.id) == "triton-1"


def test_infer_in_the_background(triton: Triton, expected: np.ndarray) -> None:
    if triton.module is tritonclient.http:
        results = [triton.client.async_infer("tiny", [triton.tensor(BATCH)]) for _ in range(4)]
        found = [result.get_result() for result in results]
    else:
        answers: queue.Queue[Any] = queue.Queue()
        for _ in range(4):
            triton.client.async_infer(
                "tiny", [triton.tensor(BATCH)], lambda result, error: answers.put(error or result)
            )
        found = [answers.get(timeout=20) for _ in range(4)]
    for result in found:
        np.testing.assert_array_equal(result.as_numpy("logits"), expected)


@pytest.mark.parametrize("count", [1, 3, CLASSES])
def test_classes(count: int, triton: Triton, expected: np.ndarray) -> None:
    batch = np.concatenate([BATCH, BATCH])
    asked = triton.module.InferRequestedOutput("logits", class_count=count)
    found = triton.infer(batch, outputs=[asked]).as_numpy("logits")
    assert found.shape == (2, count)
    order = np.argsort(-expected[0], kind="stable")[:count]
    for row in found:
        for text, index in zip(row, order, strict=True):
            value, number, label = text.decode().split(":")
            assert float(value) == pytest.approx(float(expected[0, index]), abs=1e-3)
            assert (int(number), label) == (index, f"class {index}")


def test_more_classes_than_there_are(triton: Triton) -> None:
    asked = triton.module.InferRequestedOutput("logits", class_count=CLASSES + 1)
    with pytest.raises(InferenceServerException, match="11; expected 1 to 10"):
        triton.infer(outputs=[asked])


def test_refusal(triton: Triton) -> None:
    with pytest.raises(InferenceServerException) as caught:
        triton.infer(np.concatenate([BATCH, forged(1)]), request_id="triton-2")
    assert caught.value.message() == ("suspected adversarial input in row 1; request id triton-2")
    assert caught.value.status() in ("403", "StatusCode.PERMISSION_DENIED")


def test_encoded_images(triton: Triton) -> None:
    files = np.array([encoded(40, 40, "JPEG"), encoded(32, 32, "PNG")], object)
    with pytest.raises(InferenceServerException, match="suspected") as caught:
        triton.client.infer("tiny", [triton.tensor(files, "BYTES")])
    # Noise, which is read as an image and refused as one.
    assert caught.value.status() in ("403", "StatusCode.PERMISSION_DENIED")


def test_repository_index(triton: Triton) -> None:
    found = triton.client.get_model_repository_index(
        **({"as_json": True} if triton.module is tritonclient.grpc else {})
    )
    entries = found["models"] if isinstance(found, dict) else found
    assert [(one["name"], one["version"], one["state"]) for one in entries] == [
        ("tiny", "1", "READY")
    ]


def test_statistics(triton: Triton) -> None:
    as_json = {"as_json": True} if triton.module is tritonclient.grpc else {}

    def rows(**options: Any) -> int:
        found = triton.client.get_inference_statistics(**options, **as_json)
        [entry] = found["model_stats"]
        assert (entry["name"], entry["version"]) == ("tiny", "1")
        success = entry["inference_stats"]["success"]
        assert int(success["ns"]) > 0
        return int(entry["inference_count"])

    triton.infer()
    before = rows()
    triton.infer()
    assert rows(model_name="tiny") == before + 1
    assert rows(model_name="tiny", model_version="1") == before + 1
    with pytest.raises(InferenceServerException, match="'cats' is not served"):
        rows(model_name="cats")


def test_methods_that_are_not_served(triton: Triton) -> None:
    """Are errors that the client can show."""
    for method, arguments in (
        ("load_model", ("tiny",)),
        ("unload_model", ("tiny",)),
        ("get_trace_settings", ()),
        ("get_system_shared_memory_status", ()),
        ("register_system_shared_memory", ("region", "/key", 10)),
    ):
        with pytest.raises(InferenceServerException) as caught:
            getattr(triton.client, method)(*arguments)
        assert caught.value.message()
    assert triton.client.is_server_live()


# --- HTTP alone ---------------------------------------------------------------------------------


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
def test_json_and_binary(
    binary_in: bool, binary_out: bool, http: Triton, expected: np.ndarray
) -> None:
    tensor = http.tensor(BATCH, binary_data=binary_in)
    asked = tritonclient.http.InferRequestedOutput("logits", binary_data=binary_out)
    for outputs in ([asked], None):
        result = http.client.infer("tiny", [tensor], outputs=outputs)
        np.testing.assert_array_equal(result.as_numpy("logits"), expected)
    classes = tritonclient.http.InferRequestedOutput("logits", binary_out, class_count=2)
    found = http.client.infer("tiny", [tensor], outputs=[classes]).as_numpy("logits")
    assert found.shape == (1, 2)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(algorithm: str, http: Triton, expected: np.ndarray) -> None:
    for binary in (False, True):
        result = http.client.infer(
            "tiny",
            [http.tensor(BATCH, binary_data=binary)],
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
        np.testing.assert_array_equal(result.as_numpy("logits"), expected)


# --- image_client.py ----------------------------------------------------------------------------


class Attributes(dict[str, Any]):
    """As image_client.py turns the JSON of HTTP into what gRPC gives."""

    def __init__(self, source: dict[str, Any]) -> None:
        super().__init__(source)
        for key, value in source.items():
            self[key] = _attributes(value)

    def __getattr__(self, key: str) -> Any:
        return self[key]


def _attributes(value: Any) -> Any:
    if isinstance(value, dict):
        return Attributes(value)
    return [_attributes(one) for one in value] if isinstance(value, list) else value


def parse_model(metadata: Any, config: Any) -> tuple[int, str, str, int, int, int, int, str]:
    """image_client.py's function of this name, in the same steps."""
    assert len(metadata.inputs) == 1
    assert len(metadata.outputs) == 1
    assert len(config.input) == 1
    input_metadata, input_config = metadata.inputs[0], config.input[0]
    output_metadata = metadata.outputs[0]
    assert output_metadata.datatype == "FP32"
    # The output is a vector, beside its batch dimension.
    output_batch_dim = config.max_batch_size > 0
    non_one = 0
    for dim in output_metadata.shape:
        if output_batch_dim:
            output_batch_dim = False
        elif dim > 1:
            non_one += 1
            assert non_one <= 1
    expected_dims = 3 + (1 if config.max_batch_size > 0 else 0)
    assert len(input_metadata.shape) == expected_dims
    kinds = dict(model_config_pb2.ModelInput.Format.items())
    kind = input_config.format
    kind = kinds[kind] if isinstance(kind, str) else kind
    assert kind in (kinds["FORMAT_NCHW"], kinds["FORMAT_NHWC"])
    sizes = input_metadata.shape[1:] if config.max_batch_size > 0 else input_metadata.shape
    if kind == kinds["FORMAT_NHWC"]:
        h, w, c = sizes
    else:
        c, h, w = sizes
    layout = "NHWC" if kind == kinds["FORMAT_NHWC"] else "NCHW"
    return (
        config.max_batch_size, input_metadata.name, output_metadata.name,
        int(c), int(h), int(w), layout, input_metadata.datatype,
    )  # fmt: skip


def image_client(triton: Triton, model: str, pictures: np.ndarray, classes: int) -> list[list[str]]:
    """Ask about pictures [N, H, W, C] in [0, 1] as image_client.py does; `value:index:label`s."""
    metadata = triton.client.get_model_metadata(model_name=model, model_version="")
    config = triton.client.get_model_config(model_name=model, model_version="")
    if triton.module is tritonclient.http:
        metadata, config = Attributes(metadata), Attributes(config)
    else:
        config = config.config
    most, name, output, c, h, w, layout, datatype = parse_model(metadata, config)
    assert most >= len(pictures)
    assert (c, h, w) == (3, 32, 32)
    scaled = pictures * 255 if datatype == "UINT8" else pictures
    ordered = scaled.transpose(0, 3, 1, 2) if layout == "NCHW" else scaled
    batched = np.ascontiguousarray(ordered.astype(triton_to_np_dtype(datatype)))
    tensor = triton.module.InferInput(name, batched.shape, datatype)
    tensor.set_data_from_numpy(batched)
    asked = triton.module.InferRequestedOutput(output, class_count=classes)
    result = triton.client.infer(model, [tensor], request_id="1", model_version="", outputs=[asked])
    array = result.as_numpy(output)
    assert array.dtype.type is np.object_
    assert len(array) == len(pictures)
    return [["".join(chr(byte) for byte in one) for one in row] for row in array]


def test_image_client(triton: Triton, expected: np.ndarray) -> None:
    pictures = np.concatenate([BATCH, BATCH]).transpose(0, 2, 3, 1)
    found = image_client(triton, "tiny", pictures, 3)
    top = int(expected[0].argmax())
    assert [row[0].split(":")[1:] for row in found] == [[str(top), f"class {top}"]] * 2
    assert all(len(row) == 3 for row in found)
