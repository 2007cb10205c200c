"""Bodies to requests and answers to bodies, without a server; and the same batch over every way."""

from __future__ import annotations

import base64
import gzip
import json
import math
import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from firewall.bundle.spec import InputSpec
from firewall.errors import InvalidInput, TooLarge, UnsupportedMedia
from firewall.serve import converters, rest_converters
from firewall.serve.data_plane import InferOutput, InferResult
from firewall.serve.json_memory import JsonMemory
from firewall.serve.rest_converters import AskedInference, Request
from firewall.serve.status import SUSPECTED, Failure
from firewall.serve.tensors import EncodedImages, Limits, RawTensor, to_rows
from firewall.wire import firewall_pb2 as native
from firewall.wire import open_inference_pb2 as oip
from tests.support.rest import binary, tensor

LIMITS = Limits(rows=4)
SPECS = {
    "FP32": InputSpec(name="image", channels=1, height=4, width=4),
    "UINT8": InputSpec(
        name="image", datatype="UINT8", layout="NHWC", channels=1, height=4, width=4, high=255.0
    ),
}


def request(
    body: bytes, headers: dict[str, str] | None = None, max_bytes: int = 1 << 26
) -> Request:
    """A request as the server makes it."""
    named = {key.lower(): value for key, value in (headers or {}).items()}
    return Request(body, named, {"model": "tiny"}, max_bytes, JsonMemory())


def read_json(body: Any) -> AskedInference:
    return rest_converters.infer_request(request(json.dumps(body).encode()), LIMITS)


# --- the same batch over every way --------------------------------------------------------------


def over_json(entry: dict[str, Any], _: np.ndarray) -> Any:
    return read_json({"inputs": [entry]}).request.input.batch


def over_binary(entry: dict[str, Any], batch: np.ndarray) -> Any:
    body, headers = binary(batch, entry)
    return rest_converters.infer_request(request(body, headers), LIMITS).request.input.batch


def over_grpc(entry: dict[str, Any], **data: Any) -> Any:
    header = {key: entry[key] for key in ("name", "datatype", "shape")}
    contents = data.pop("contents", None)
    message = oip.ModelInferRequest(
        inputs=[header | ({"contents": contents} if contents else {})], **data
    )
    # As it travels.
    message = oip.ModelInferRequest.FromString(message.SerializeToString())
    return converters.infer_request(message, LIMITS).input.batch


def over_raw(entry: dict[str, Any], batch: np.ndarray) -> Any:
    return over_grpc(entry, raw_input_contents=[batch.tobytes()])


def over_typed(entry: dict[str, Any], batch: np.ndarray) -> Any:
    field = "uint_contents" if batch.dtype == np.uint8 else "fp32_contents"
    return over_grpc(entry, contents=oip.InferTensorContents(**{field: batch.ravel().tolist()}))


def outcome(way: Any, entry: dict[str, Any], batch: np.ndarray, spec: InputSpec) -> Any:
    """The rows, or the class of the error."""
    try:
        raw = way(entry, batch)
        assert isinstance(raw, RawTensor)
        return to_rows(raw, spec, LIMITS)
    except InvalidInput as error:
        return type(error)


@st.composite
def batches(draw: st.DrawFn) -> tuple[dict[str, Any], np.ndarray, InputSpec]:
    """An input tensor that fits the model, or nearly; and the model's input."""
    name = draw(st.sampled_from(sorted(SPECS)))
    spec = SPECS[name]
    rows = draw(st.integers(0, 5))
    shape = draw(
        st.one_of(
            st.just((rows, *spec.shape)),
            st.just((rows, *spec.shape)),
            arrays.array_shapes(min_dims=1, max_dims=5, max_side=4),
        )
    )
    elements: Any = st.integers(0, 255)
    if name == "FP32":
        elements = st.floats(width=32, allow_nan=True, allow_infinity=True)
    batch = draw(
        arrays.arrays(np.uint8 if name == "UINT8" else np.float32, shape, elements=elements)
    )
    entry = tensor(batch, nested=draw(st.booleans()))
    if draw(st.integers(0, 5)) == 0:
        entry["shape"] = list(draw(arrays.array_shapes(min_dims=0, max_dims=5, max_side=5)))
    if draw(st.integers(0, 5)) == 0:
        entry["datatype"] = draw(st.sampled_from(["FP32", "UINT8", "FP16", "FP64", "INT32", ""]))
    return entry, batch, spec


@given(batches())
@example((tensor(np.zeros((0, 1, 4, 4), np.float32)), np.zeros((0, 1, 4, 4), np.float32),
          SPECS["FP32"]))  # fmt: skip
@example((tensor(np.full((1, 1, 4, 4), np.nan, np.float32)),
          np.full((1, 1, 4, 4), np.nan, np.float32), SPECS["FP32"]))  # fmt: skip
def test_every_way_gives_the_same_rows_or_the_same_error(
    case: tuple[dict[str, Any], np.ndarray, InputSpec],
) -> None:
    entry, batch, spec = case
    expected = outcome(over_raw, entry, batch, spec)
    for way in (over_binary, over_json, over_typed):
        found = outcome(way, entry, batch, spec)
        if isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype
        else:
            assert found is expected


@given(st.lists(st.binary(max_size=60), max_size=6), st.sampled_from([0, 1, 2]))
def test_every_way_gives_the_same_images(images: list[bytes], extra: int) -> None:
    shape = [len(images), 1] if extra == 2 else [len(images) + extra]
    header = {"name": "image", "datatype": "BYTES", "shape": shape}
    raw = b"".join(len(image).to_bytes(4, "little") + image for image in images)
    texts = [base64.b64encode(image).decode() for image in images]

    def rest(body: bytes, headers: dict[str, str]) -> Any:
        return rest_converters.infer_request(request(body, headers), LIMITS).request.input.batch

    ways = (
        lambda: over_grpc(header, raw_input_contents=[raw]),
        lambda: over_grpc(header, contents=oip.InferTensorContents(bytes_contents=images)),
        lambda: rest(*binary(raw, header)),
        lambda: over_json(header | {"data": texts}, np.zeros(0)),
    )
    for way in ways:
        try:
            batch = way()
        except InvalidInput as error:
            # The typed contents alone are counted later, by the data plane.
            assert len(images) > LIMITS.rows or extra == 1 or not images, error
            continue
        assert isinstance(batch, EncodedImages)
        assert list(batch.images) == images
        assert extra != 1


# --- bodies that cost more than they should ------------------------------------------------------


def peak(body: bytes, headers: dict[str, str] | None = None) -> int:
    """Bytes that reading a bad body takes at most."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput):
            rest_converters.infer_request(request(body, headers), LIMITS)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_text_for_numbers_takes_no_more_memory_than_it_has() -> None:
    """numpy would make each of a thousand elements as long as the longest: 4 GB."""
    data = ["a" * 1_000_000, *[""] * 1000]
    body = json.dumps({"inputs": [tensor(np.zeros((1, 1, 4, 4), np.float32), data=data)]}).encode()
    assert peak(body) < 20 * len(body)


def test_lists_and_objects_are_counted_before_they_are_made() -> None:
    for piece in (b"[],", b"{},", b'{"a":[]},'):
        body = b'{"inputs":[' + piece * (1 << 20) + b"{}]}"
        assert peak(body) < len(body)
        with pytest.raises(InvalidInput, match="more than 1048576 lists and objects"):
            rest_converters.infer_request(request(body), LIMITS)


def test_parts_of_a_form_are_counted_before_they_are_read() -> None:
    part = b'--cut\r\nContent-Disposition: form-data; name="f"\r\n\r\n'
    body = part + b"\r\n--cut\r" * 200 + b"\r\n--cut--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=cut"}
    with pytest.raises(InvalidInput, match="more than 68 parts"):
        rest_converters.native_request(request(body, headers), LIMITS)


def test_decompression_stops_at_the_limit() -> None:
    body = gzip.compress(bytes(50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="over 100000 bytes after decompression"):
            request(body, {"Content-Encoding": "gzip"}, 100_000).content()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("encoding", ["", "identity", "Identity", "GZIP"])
def test_names_of_encodings(encoding: str) -> None:
    body = gzip.compress(b"{}") if encoding == "GZIP" else b"{}"
    assert request(body, {"Content-Encoding": encoding}).content() == b"{}"


@pytest.mark.parametrize("encoding", ["gzip, gzip", "br", "zstd", "gzip;q=1"])
def test_encodings_that_are_not_served(encoding: str) -> None:
    with pytest.raises(UnsupportedMedia) as caught:
        request(b"", {"Content-Encoding": encoding}).content()
    assert caught.value.field == "content-encoding"


# --- the native API -----------------------------------------------------------------------------


def form(**fields: str) -> Request:
    """A form with one image and fields."""
    parts = [
        f'--cut\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    parts.append(
        '--cut\r\nContent-Disposition: form-data; name="image"; filename="/etc/a"\r\n\r\nabc\r\n'
    )
    body = "".join([*parts, "--cut--\r\n"]).encode()
    return request(body, {"Content-Type": 'Multipart/Form-Data; boundary="cut"'})


def test_fields_of_a_form() -> None:
    asked = rest_converters.native_request(
        form(top_k="3", request_id="a", version="1", pixels="yes", unknown="x"), LIMITS
    )
    assert (asked.top_k, asked.pixels) == (3, True)
    assert (asked.request.request_id, asked.request.version) == ("a", "1")
    assert asked.request.batch == EncodedImages("image", [b"abc"])


@pytest.mark.parametrize(
    ("value", "pixels"), [("1", True), ("True", True), ("no", False), ("", False), ("0", False)]
)
def test_pixels_of_a_form(value: str, pixels: bool) -> None:
    assert rest_converters.native_request(form(pixels=value), LIMITS).pixels is pixels


@pytest.mark.parametrize("top_k", ["", "-1", "1.5", "٣", "1e3", "9" * 11])
def test_labels_of_a_form_that_are_no_number(top_k: str) -> None:
    with pytest.raises(InvalidInput, match=r"^top_k: .*expected a whole number"):
        rest_converters.native_request(form(top_k=top_k), LIMITS)


# --- answers ------------------------------------------------------------------------------------


def answer(values: np.ndarray, *, binary: bool) -> tuple[dict[str, Any], bytes]:
    output = InferOutput("logits", "FP32", values.shape, values)
    asked = read_json({"inputs": [tensor(np.zeros((1, 1, 4, 4), np.float32))],
                       "parameters": {"binary_data_output": binary}})  # fmt: skip
    result = InferResult("tiny", "1", "", [output], {"firewall_verdict": "accept"})
    response = rest_converters.infer_response(result, asked)
    size = int((response.headers or {}).get("Inference-Header-Content-Length", len(response.body)))
    return json.loads(response.body[:size]), response.body[size:]


def test_values_that_json_does_not_have_are_null() -> None:
    values = np.array([[1.5, -2], [np.nan, np.inf]], np.float32)
    body, tail = answer(values, binary=False)
    assert body["outputs"][0]["data"] == [1.5, -2.0, None, None]
    assert (tail, body["parameters"]) == (b"", {"firewall_verdict": "accept"})
    body, tail = answer(values, binary=True)
    np.testing.assert_array_equal(np.frombuffer(tail, "<f4").reshape(2, 2), values)


def test_message_json_writes_zeros_and_leaves_out_what_is_not_set() -> None:
    message = native.PredictResponse(model="tiny")
    message.predictions.add().labels.add(index=0, probability=0.0)
    assert rest_converters.message_json(message) == {
        "model": "tiny",
        "version": "",
        "request_id": "",
        "predictions": [{"labels": [{"index": 0, "name": "", "probability": 0.0}]}],
    }


def test_message_json_of_bytes_maps_enums_and_numbers_that_json_does_not_have() -> None:
    decision = native.Decision(verdict="REJECT", reasons=["a"])
    decision.diagnostics.p_value = math.nan
    decision.diagnostics.statistics["b"] = math.inf
    response = native.ScreenResponse(decisions=[decision], screened=[{"sha256": "00"}])
    response.screened.add(sha256="01", png=b"\xff")
    found = rest_converters.message_json(response)
    assert found["decisions"] == [
        {
            "verdict": "REJECT",
            "reasons": ["a"],
            "diagnostics": {"p_value": None, "statistics": {"b": None}, "escalated": False},
        }
    ]
    assert found["screened"] == [{"sha256": "00"}, {"sha256": "01", "png": "/w=="}]
    rest_converters.json_response(found)


def test_failures_carry_what_helps_a_client() -> None:
    refusal = rest_converters.failure_response(
        Failure(StatusCode.PERMISSION_DENIED, 403, "no", "id", reason=SUSPECTED, rows=(1, 2))
    )
    assert json.loads(refusal.body) == {
        "error": "no", "request_id": "id", "reason": SUSPECTED, "rows": [1, 2],
    }  # fmt: skip
    for seconds, header in ((0.01, "1"), (1.0, "1"), (1.2, "2"), (10.0, "10")):
        busy = rest_converters.failure_response(
            Failure(StatusCode.RESOURCE_EXHAUSTED, 429, "busy", "id", retry_after=seconds)
        )
        assert (busy.headers or {})["Retry-After"] == header
    unknown = rest_converters.failure_response(
        Failure(StatusCode.UNAUTHENTICATED, 401, "who", "id")
    )
    assert unknown.headers == {"WWW-Authenticate": "Bearer"}


def test_json_that_would_take_more_memory_than_there_is_is_refused_unparsed() -> None:
    memory = JsonMemory(total=10 << 20)
    numbers = b"[" + b"0," * 200_000 + b"0]"
    words = r"200000 values of JSON would take 19 MiB.*binary data"
    with pytest.raises(TooLarge, match=words), memory.held(numbers):
        pytest.fail("it is held")
    # Text of the same length takes little.
    with memory.held(b'"' + b"x" * len(numbers) + b'"'):
        pass


def test_json_bodies_share_their_memory() -> None:
    memory = JsonMemory(total=1 << 20)
    body = b"[" + b"0," * 8_000 + b"0]" + b" " * 60_000
    began, done = threading.Event(), threading.Event()

    def second() -> None:
        began.set()
        with memory.held(body):
            done.set()

    with memory.held(body):
        other = threading.Thread(target=second)
        other.start()
        assert began.wait(10)
        assert not done.wait(0.2)
    other.join(10)
    assert done.is_set()
