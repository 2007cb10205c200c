"""Everything that a client can get wrong: its status, its field, and the server stays up."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from firewall.wire import firewall_pb2 as native
from firewall.wire import open_inference_pb2 as oip
from tests.e2e.conftest import MAX_MESSAGE
from tests.support.image_files import bomb, encoded
from tests.support.served import Served, call, details
from tests.support.tiny import wire

INFER = "/inference.GRPCInferenceService/ModelInfer"
PREDICT = "/firewall.v1.FirewallService/Predict"
TOP = "outputs[0].parameters['classification']"
TENSOR = oip.ModelInferRequest.InferInputTensor
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


def infer(change: Callable[[oip.ModelInferRequest], Any] = lambda request: None) -> bytes:
    """A good inference request, spoilt."""
    request = oip.ModelInferRequest(
        model_name="tiny",
        inputs=[TENSOR(name="image", datatype="FP32", shape=[1, 3, 32, 32])],
        raw_input_contents=[wire(1, 20).tobytes()],
    )
    change(request)
    return request.SerializeToString()


def values(bad: float) -> bytes:
    batch = wire(1, 20)
    batch[0, 1, 2, 3] = bad
    return infer(lambda request: request.raw_input_contents.__setitem__(0, batch.tobytes()))


def shape(*sizes: int) -> bytes:
    def change(request: oip.ModelInferRequest) -> None:
        del request.inputs[0].shape[:]
        request.inputs[0].shape.extend(sizes)

    return infer(change)


def field(name: str, value: Any) -> bytes:
    return infer(lambda request: setattr(request.inputs[0], name, value))


def parameter(key: str) -> bytes:
    def change(request: oip.ModelInferRequest) -> None:
        request.inputs[0].parameters[key].string_param = "region"
        request.ClearField("raw_input_contents")

    return infer(change)


def images(*data: bytes) -> bytes:
    return native.PredictRequest(
        input=native.Input(images=native.Images(encoded=data))
    ).SerializeToString()


def jpeg(side: int = 64) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def both_contents(request: oip.ModelInferRequest) -> None:
    request.inputs[0].contents.fp32_contents.extend([0.5] * 3072)


def output(number: int | None = None, text: str = "", key: str = "classification") -> bytes:
    """A request for an output with a parameter."""

    def change(request: oip.ModelInferRequest) -> None:
        parameter = request.outputs.add(name="logits").parameters[key]
        if number is None:
            parameter.string_param = text
        else:
            parameter.int64_param = number

    return infer(change)


def typed(count: int) -> Callable[[oip.ModelInferRequest], None]:
    def change(request: oip.ModelInferRequest) -> None:
        request.ClearField("raw_input_contents")
        request.inputs[0].contents.fp32_contents.extend([0.5] * count)

    return change


CASES: dict[str, tuple[str, bytes, grpc.StatusCode, str, str]] = {
    # name: (method, message, status, field, words)
    "wrong dtype": (INFER, field("datatype", "FP64"), INVALID, "inputs[0].datatype",
                    "'FP64'; expected 'FP32'"),
    "wrong rank": (INFER, shape(3, 32, 32), INVALID, "inputs[0].shape",
                   "[3, 32, 32]; expected [rows, 3, 32, 32]"),
    "wrong size": (INFER, shape(1, 3, 16, 16), INVALID, "inputs[0].shape", "[1, 3, 16, 16]"),
    "a negative size": (INFER, shape(-1, 3, 32, 32), INVALID, "inputs[0].shape", "-1 rows"),
    "a huge size": (INFER, shape(2**62, 3, 32, 32), INVALID, "inputs[0].shape", "rows; expected"),
    "a shape of a thousand sizes": (INFER, shape(*range(1000)), INVALID, "inputs[0].shape",
                                    "and more"),
    "zero rows": (INFER, shape(0, 3, 32, 32), INVALID, "inputs[0].shape",
                  "0 rows; expected 1 to 64"),
    "too many rows": (INFER, shape(65, 3, 32, 32), INVALID, "inputs[0].shape", "65 rows"),
    "raw length is not shape x dtype": (
        INFER, shape(2, 3, 32, 32), INVALID, "raw_input_contents[0]",
        "12288 bytes; shape [2, 3, 32, 32] of FP32 has 24576"),
    "raw and typed": (INFER, infer(both_contents), INVALID, "inputs[0].contents", "one of the two"),
    "typed of wrong length": (INFER, infer(typed(3071)), INVALID,
                              "inputs[0].contents.fp32_contents", "3071 values"),
    "no data": (INFER, infer(lambda r: r.ClearField("raw_input_contents")), INVALID, "inputs[0]",
                "holds no data"),
    "two raw entries": (INFER, infer(lambda r: r.raw_input_contents.append(b"")), INVALID,
                        "raw_input_contents", "2 entries for one input"),
    "no input": (INFER, infer(lambda r: r.ClearField("inputs")), INVALID, "inputs", "0 tensors"),
    "two inputs": (INFER, infer(lambda r: r.inputs.append(TENSOR(name="b"))), INVALID, "inputs",
                   "2 tensors; expected one"),
    "another input": (INFER, field("name", "picture"), INVALID, "inputs[0].name",
                      "'picture'; expected 'image'"),
    "another output": (INFER, infer(lambda r: r.outputs.add(name="probs")), INVALID,
                       "outputs[0].name", "'probs'; expected 'logits'"),
    "no class": (INFER, output(0), INVALID, TOP, "0; expected at least 1"),
    "-1 classes": (INFER, output(-1), INVALID, TOP, "-1; expected at least 1"),
    "11 classes": (INFER, output(11), INVALID, TOP, "11; expected 1 to 10"),
    "classes in words": (INFER, output(text="3"), INVALID, TOP, "expected an integer"),
    "shared memory of an output": (INFER, output(text="r", key="shared_memory_region"), INVALID,
                                   "outputs[0].parameters['shared_memory_region']",
                                   "is not served"),
    "NaN": (INFER, values(float("nan")), INVALID, "raw_input_contents[0]", "NaN or infinity"),
    "infinity": (INFER, values(float("inf")), INVALID, "raw_input_contents[0]", "NaN or infinity"),
    "over one": (INFER, values(2.0), INVALID, "raw_input_contents[0]",
                 "expected values in [0, 1]"),
    "below zero": (INFER, values(-1.0), INVALID, "raw_input_contents[0]",
                   "expected values in [0, 1]"),
    "unknown model": (INFER, infer(lambda r: setattr(r, "model_name", "cats")), NOT_FOUND,
                      "", "'cats' is not served; served: tiny"),
    "no model": (INFER, infer(lambda r: setattr(r, "model_name", "")), NOT_FOUND, "", "''"),
    "unknown version": (INFER, infer(lambda r: setattr(r, "model_version", "9")), NOT_FOUND,
                        "", "'9' of 'tiny' is not served; served: 1"),
    "shared memory": (INFER, parameter("shared_memory_region"), INVALID,
                      "inputs[0].parameters['shared_memory_region']", "is not served"),
    "a bad id": (INFER, infer(lambda r: setattr(r, "id", "a b")), INVALID, "id", "1 to 128"),
    "random bytes": (INFER, bytes(range(255, 100, -1)), INVALID, "message",
                     "is not a inference.ModelInferRequest"),
    "random bytes, native": (PREDICT, b"\xff\xfe\xfd" * 30, INVALID, "message",
                             "is not a firewall.v1.PredictRequest"),
    "an empty message": (PREDICT, b"", INVALID, "input", "is empty"),
    "no images": (PREDICT, images(), INVALID, "input.images.encoded", "0 rows"),
    "a truncated JPEG": (PREDICT, images(jpeg(), encoded(64, 64, "JPEG")[:400]), INVALID,
                         "input.images.encoded[1]", "damaged or truncated"),
    "text for an image": (PREDICT, images(b"hello"), INVALID, "input.images.encoded[0]",
                          "neither a JPEG, a PNG nor a WebP"),
    "a PNG of 20000 x 20000": (PREDICT, images(bomb()), INVALID, "input.images.encoded[0]",
                               "20000 x 20000 pixels"),
    "too many labels": (
        PREDICT,
        native.PredictRequest(
            top_k=11,
            input=native.Input(images=native.Images(encoded=[jpeg()])),
        ).SerializeToString(),
        INVALID, "top_k", "11; expected at most 10"),
    "unknown model, native": (PREDICT, native.PredictRequest(
                                  model="x", input=native.Input(images=native.Images(encoded=[b""]))
                              ).SerializeToString(), NOT_FOUND, "", "'x' is not served"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, server: Served) -> None:
    method, data, status, where, words = CASES[name]
    with pytest.raises(grpc.RpcError) as caught:
        call(server.address, method, data)
    error = caught.value
    text = error.details()
    assert error.code() is status, text
    assert words in text
    if where:
        assert text.startswith(f"{where}: "), text
        assert details(error)["BadRequest"].field_violations[0].field == where
    for internal in ("Traceback", ".py", "Error", "/", "0x", "numpy", "onnx"):
        assert internal not in text, text
    assert dict(error.trailing_metadata())["x-request-id"]
    # And the next good request is answered.
    answer = oip.ModelInferResponse.FromString(call(server.address, INFER, infer()))
    assert answer.outputs[0].name == "logits"


def test_the_bomb_is_small() -> None:
    assert len(bomb()) < 8000


def test_a_message_over_the_limit(server: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(server.address, INFER, bytes(MAX_MESSAGE + 1000))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert call(server.address, INFER, infer())


def test_an_unknown_method(server: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(server.address, "/inference.GRPCInferenceService/ModelStreamInfer", b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_random_messages_never_kill_it(server: Served) -> None:
    rng = np.random.default_rng(0)
    good = infer()
    with grpc.insecure_channel(server.address) as channel:
        method = channel.unary_unary(INFER)
        for _ in range(200):
            data = bytearray(
                good[: int(rng.integers(1, len(good)))] if rng.random() < 0.5 else good
            )
            for place in rng.integers(0, min(len(data), 200), 3):
                data[place] = rng.integers(0, 256)
            try:
                method(bytes(data), timeout=20)
            except grpc.RpcError as error:
                assert error.code() in (
                    INVALID, NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED,
                ), error.details()  # fmt: skip
    assert call(server.address, INFER, infer())


def test_a_compressed_bomb_is_not_inflated(server: Served) -> None:
    """gRPC inflates before it measures, so compression is off."""
    with grpc.insecure_channel(server.address) as channel:
        method = channel.unary_unary(INFER)
        with pytest.raises(grpc.RpcError) as caught:
            method(bytes(100_000), timeout=20, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert call(server.address, INFER, infer())


def test_a_message_of_a_hundred_thousand_nothings(server: Served) -> None:
    """Two bytes each on the wire, a hundred times that as objects."""
    for data in (b"\x2a\x00" * 100_000, b"\x2a\xa0\x8d\x06" + b"\x22\x00" * 50_000):
        with pytest.raises(grpc.RpcError) as caught:
            call(server.address, INFER, data)
        assert caught.value.code() is INVALID
        assert caught.value.details() == "message: more than 4096 fields"


def test_thin_images_do_not_become_huge(server: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(server.address, PREDICT, images(encoded(1, 60_000)))
    assert caught.value.code() is INVALID
    assert "which resizing would make 36 x 2160000" in caught.value.details()


@pytest.mark.parametrize("path", ["/foo", "//", "/a/b/c"])
def test_a_strange_method_path(path: str, server: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(server.address, path, b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_an_id_with_a_line_break(server: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(server.address, INFER, infer(lambda request: setattr(request, "id", "abc\n")))
    assert caught.value.code() is INVALID
