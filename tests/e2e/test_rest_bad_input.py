"""Everything that a REST client can get wrong: its status, its field, and the server stays up."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest

from tests.e2e.conftest import MAX_MESSAGE
from tests.support.image_files import bomb, encoded
from tests.support.rest import binary, check_public, tensor, values
from tests.support.served import Served
from tests.support.tiny import wire

INFER = "/v2/models/tiny/infer"
PREDICT, SCREEN = "/firewall/v1/models/tiny:predict", "/firewall/v1/models/tiny:screen"
BATCH = wire(1, 20)
OCTETS = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Bad:
    """A request and what its answer says."""

    words: str
    where: str = ""
    status: int = 400
    body: Any = None
    content: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    path: str = INFER
    files: Any = None

    def send(self, http: httpx.Client) -> httpx.Response:
        """Send it."""
        content = self.content
        if content is None and self.files is None:
            # Not httpx's own JSON, which has no NaN.
            content = json.dumps(self.body).encode()
        return http.post(self.path, content=content, headers=self.headers, files=self.files)


def infer(words: str, where: str, **changes: Any) -> Bad:
    """A good input tensor, spoilt."""
    entry = {key: value for key, value in tensor(BATCH, **changes).items() if value is not ...}
    return Bad(words, where, body={"inputs": [entry]})


def pixel(value: Any, words: str) -> Bad:
    """A good tensor with another first value."""
    data = BATCH.ravel().tolist()
    data[0] = value
    return infer(words, "inputs[0].data", data=data)


def request(words: str, where: str, **changes: Any) -> Bad:
    """A good request, spoilt."""
    return Bad(words, where, body={"inputs": [tensor(BATCH)]} | changes)


def output(words: str, where: str, name: str = "logits", **parameters: Any) -> Bad:
    """A request for an output."""
    return request(words, where, outputs=[{"name": name, "parameters": parameters}])


def raw(words: str, where: str, tail: bytes, length: str | None = None, **header: Any) -> Bad:
    """A request with binary data, spoilt."""
    content, headers = binary(BATCH, tensor(BATCH, **header))
    content = content[: int(headers[OCTETS])] + tail
    if length is not None:
        headers[OCTETS] = length
    return Bad(words, where, content=content, headers=headers)


def text(content: bytes, words: str = "is not JSON", where: str = "body", **options: Any) -> Bad:
    """Bytes."""
    return Bad(words, where, content=content, **options)


def native(words: str, where: str, **body: Any) -> Bad:
    """A request of the native API."""
    return Bad(words, where, body=body, path=PREDICT)


def form(words: str, where: str, content: bytes, **options: Any) -> Bad:
    """A multipart form as bytes."""
    headers = {"Content-Type": "multipart/form-data; boundary=cut"}
    return Bad(words, where, content=content, headers=headers, path=PREDICT, **options)


GOOD = json.dumps({"inputs": [tensor(BATCH)]}).encode()
RAGGED = BATCH.tolist()
RAGGED[0][1][2] = RAGGED[0][1][2][:31]
TENSOR = {"datatype": "FP32", "shape": [1, 3, 32, 32], "data": BATCH.tolist()}
PART = b'--cut\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nabc\r\n'
CLASSES = "outputs[0].parameters['classification']"

CASES: dict[str, Bad] = {
    # the tensor
    "another name": infer("'picture'; expected 'image'", "inputs[0].name", name="picture"),
    "no name": infer("Field required", "inputs[0].name", name=...),
    "a name that is no text": infer("valid string", "inputs[0].name", name=3),
    "another rank": infer("expected [rows, 3, 32, 32]", "inputs[0].shape", shape=[3, 32, 32]),
    "another size": infer("[1, 3, 16, 16]", "inputs[0].shape", shape=[1, 3, 16, 16]),
    "no shape": infer("Field required", "inputs[0].shape", shape=...),
    "a negative size": infer("greater than", "inputs[0].shape[0]", shape=[-1, 3, 32, 32]),
    "a huge size": infer("less than", "inputs[0].shape[0]", shape=[2**62, 3, 32, 32]),
    "a fractional size": infer("valid integer", "inputs[0].shape[0]", shape=[1.5, 3, 32, 32]),
    "a size that is true": infer("valid integer", "inputs[0].shape[0]", shape=[True, 3, 32, 32]),
    "a shape of a thousand sizes": infer("at most 16", "inputs[0].shape", shape=[1] * 1000),
    "no rows": infer("0 rows; expected 1 to 64", "inputs[0].shape", shape=[0, 3, 32, 32], data=[]),
    "too many rows": infer("65 rows", "inputs[0].shape", shape=[65, 3, 32, 32]),
    "another datatype": infer("'FP64'; expected 'FP32'", "inputs[0].datatype", datatype="FP64"),
    "a long datatype": infer("xxx'; expected", "inputs[0].datatype", datatype="x" * 9999),
    "no datatype": infer("Field required", "inputs[0].datatype", datatype=...),
    "too few values": infer("3071 values; shape [1, 3, 32, 32] has 3072", "inputs[0].data",
                            data=[0.5] * 3071),
    "ragged": infer("is ragged", "inputs[0].data", data=RAGGED),
    "ragged at the top": infer("expected numbers", "inputs[0].data", data=[0.5, [0.5]]),
    "values of text": infer("expected numbers", "inputs[0].data", data=["0.5"] * 3072),
    "text among numbers": pixel("0.5", "expected numbers"),
    "null among numbers": pixel(None, "expected numbers"),
    "an object among numbers": pixel({}, "expected numbers"),
    "values that are true": infer("true and false are none", "inputs[0].data", data=[True] * 3072),
    "true among numbers": pixel(True, "true and false are none"),
    "NaN": pixel(float("nan"), "NaN or infinity"),
    "infinity": pixel(float("inf"), "NaN or infinity"),
    "a number over FP32": pixel(1e300, "NaN or infinity"),
    "an integer over FP64": pixel(10**400, "expected numbers"),
    "over one": pixel(2, "expected values in [0, 1]"),
    "below zero": pixel(-1.0, "expected values in [0, 1]"),
    "no data": infer("holds no data", "inputs[0]", data=...),
    "null for data": infer("holds no data", "inputs[0]", data=None),
    "an object for data": infer("valid list", "inputs[0].data", data={"0": 1}),
    "text for data": infer("valid list", "inputs[0].data", data="AAAA"),
    "1,000 nested lists": text(GOOD.replace(b'"data": [', b'"data": [' + b"[" * 1000, 1)),
    "100 nested lists": infer("0 values", "inputs[0].data", data=json.loads("[" * 99 + "]" * 99)),
    # the extension
    "data and binary data": infer("send one of the two", "inputs[0].data",
                                  parameters={"binary_data_size": 0}),
    "binary data is too short": raw("12287 bytes follow the JSON",
                                    "inputs[0].parameters['binary_data_size']",
                                    BATCH.tobytes()[:-1]),
    "binary data is too long": raw("12289 bytes follow the JSON",
                                   "inputs[0].parameters['binary_data_size']",
                                   BATCH.tobytes() + b"\0"),
    "binary data of another shape": raw("12288 bytes; shape [2, 3, 32, 32] of FP32 has 24576",
                                        "inputs[0] (binary data)", BATCH.tobytes(),
                                        shape=[2, 3, 32, 32]),
    "binary data of NaN": raw("NaN or infinity", "inputs[0] (binary data)",
                              np.full_like(BATCH, np.nan).tobytes()),
    "a size that is text": raw("12288; 12288 bytes", "inputs[0].parameters['binary_data_size']",
                               BATCH.tobytes(), parameters={"binary_data_size": "12288"}),
    "a size below zero": raw("-1; 12288 bytes", "inputs[0].parameters['binary_data_size']",
                             BATCH.tobytes(), parameters={"binary_data_size": -1}),
    "a size of data that is true": raw("True; 1 bytes", "inputs[0].parameters['binary_data_size']",
                               b"\0", parameters={"binary_data_size": True}),
    "bytes after the JSON": Bad("4 bytes after the JSON", "body", content=GOOD + b"1234",
                                headers={OCTETS: str(len(GOOD))}),
    "bytes after JSON without the header": text(GOOD + b"1234"),
    "the JSON is said to be longer": raw("at most", OCTETS, BATCH.tobytes(), "999999"),
    "a length below zero": raw("'-1'; expected", OCTETS, BATCH.tobytes(), "-1"),
    "a length that is text": raw("'ten'; expected", OCTETS, BATCH.tobytes(), "ten"),
    "an empty length": raw("''; expected", OCTETS, BATCH.tobytes(), ""),
    "a length of 5,000 digits": raw("999'; expected", OCTETS, BATCH.tobytes(), "9" * 5000),
    "the JSON is said to be shorter": raw("is not JSON", "body", BATCH.tobytes(), "10"),
    "no JSON": raw("is not JSON", "body", BATCH.tobytes(), "0"),
    "shared memory": infer("shared memory is not served",
                           "inputs[0].parameters['shared_memory_region']",
                           parameters={"shared_memory_region": "r"}, data=...),
    "shared memory of an output": output("shared memory is not served",
                                         "outputs[0].parameters['shared_memory_region']",
                                         shared_memory_region="r"),
    # outputs
    "another output": output("'probs'; expected 'logits'", "outputs[0].name", "probs"),
    "no class": output("0; expected at least 1", CLASSES, classification=0),
    "-1 classes": output("-1; expected at least 1", CLASSES, classification=-1),
    "11 classes": output("11; expected 1 to 10", CLASSES, classification=11),
    "true classes": output("expected a whole number", CLASSES, classification=True),
    "1.5 classes": output("expected a whole number", CLASSES, classification=1.5),
    "binary is text": output("expected true or false", "outputs[0].parameters['binary_data']",
                             binary_data="false"),
    "binary by default is text": request("expected true or false",
                                         "parameters['binary_data_output']",
                                         parameters={"binary_data_output": "false"}),
    "65 outputs": request("at most 64", "outputs", outputs=[{"name": "logits"}] * 65),
    # the request
    "no inputs": Bad("Field required", "inputs", body={}),
    "zero inputs": request("0 tensors; expected one", "inputs", inputs=[]),
    "two inputs": request("2 tensors; expected one", "inputs", inputs=[tensor(BATCH)] * 2),
    "65 inputs": request("at most 64", "inputs", inputs=[tensor(BATCH, data=[])] * 65),
    "an id of two words": request("1 to 128 printable", "id", id="a b"),
    "an id with a line break": request("1 to 128 printable", "id", id="abc\n"),
    "an id that is a number": request("valid string", "id", id=7),
    "a lone surrogate": request("1 to 128 printable", "id", id="\ud800"),
    "a list": Bad("valid dictionary", "body", body=[]),
    "null": Bad("valid dictionary", "body", body=None),
    "nothing": text(b""),
    "no JSON at all": text(b"hello"),
    "half of the JSON": text(GOOD[: len(GOOD) // 2]),
    "UTF-16": text(GOOD.decode().encode("utf-16")),
    "a byte order mark": text(b"\xef\xbb\xbf" + GOOD),
    "bytes that are no text": text(b"\xff\xfe\xfd" * 30),
    "100,000 brackets": text(b"[" * 100_000),
    "100,000 objects": text(b'{"a":' * 100_000),
    "an integer of 5,000 digits": text(b'{"id": ' + b"1" * 5000 + b"}"),
    "a key twice": text(GOOD[:-1] + b', "inputs": []}', "key 'inputs' is there twice"),
    "a key twice, within": text(GOOD.replace(b'"name"', b'"name": "x", "name"'),
                                "key 'name' is there twice"),
    # compression
    "another encoding": text(GOOD, "'br'; expected gzip or deflate", "content-encoding",
                             status=415,
                             headers={"Content-Encoding": "br"}),
    "not gzip": text(GOOD, "is not gzip data", headers={"Content-Encoding": "gzip"}),
    "not deflate": text(GOOD, "is not deflate data", headers={"Content-Encoding": "deflate"}),
    "half of gzip": text(gzip.compress(GOOD)[:-9], "is truncated gzip data",
                         headers={"Content-Encoding": "gzip"}),
    "two gzip streams": text(gzip.compress(GOOD) + gzip.compress(b" "), "more than one stream",
                             headers={"Content-Encoding": "gzip"}),
    "a bomb": text(gzip.compress(bytes(64 << 20)), "after decompression", "", status=413,
                   headers={"Content-Encoding": "gzip"}),
    "a bomb in deflate": text(zlib.compress(b"[" * (MAX_MESSAGE + 1)), "after decompression", "",
                              status=413, headers={"Content-Encoding": "deflate"}),
    # unknown things
    "another model": Bad("'cats' is not served; served: tiny", "", 404,
                         {"inputs": [tensor(BATCH)]}, path="/v2/models/cats/infer"),
    "another version": Bad("'9' of 'tiny' is not served; served: 1", "", 404,
                           {"inputs": [tensor(BATCH)]}, path="/v2/models/tiny/versions/9/infer"),
    "another model, native": Bad("'cats' is not served", "", 404, {"tensor": TENSOR},
                                 path="/firewall/v1/models/cats:predict"),
    # the native API
    "neither tensor nor images": native("expected one of tensor and images", "body"),
    "both tensor and images": native("expected one of tensor and images", "body", tensor=TENSOR,
                                     images=["AAAA"]),
    "a tensor of another shape": native("[1]; expected [rows", "tensor.shape",
                                        tensor=TENSOR | {"shape": [1]}),
    "no images": native("0 rows", "images", images=[]),
    "no base64": native("is not base64 text", "images[0]", images=["*"]),
    "an image that is a number": native("valid string", "images[0]", images=[3]),
    "an image that is text": native("neither a JPEG, a PNG nor a WebP", "images[0]",
                                    images=["AAAA"]),
    "65 images": native("65 images; at most 64", "images", images=["AAAA"] * 65),
    "11 labels": native("11; expected at most 10", "top_k", tensor=TENSOR, top_k=11),
    "-1 labels": native("greater than", "top_k", tensor=TENSOR, top_k=-1),
    "2**70 labels": native("less than", "top_k", tensor=TENSOR, top_k=2**70),
    "labels that are text": native("valid integer", "top_k", tensor=TENSOR, top_k="5"),
    "pixels that are text": Bad("valid boolean", "pixels", body={"tensor": TENSOR, "pixels": "x"},
                                path=SCREEN),
    "an id of two words, native": native("1 to 128", "request_id", tensor=TENSOR,
                                         request_id="a b"),
    "another version, native": Bad("'9' of 'tiny' is not served", "", 404,
                                   {"tensor": TENSOR, "version": "9"}, path=PREDICT),
    "a damaged JPEG": text(encoded(64, 64, "JPEG")[:400], "damaged or truncated", "body[0]",
                           headers={"Content-Type": "image/jpeg"}, path=PREDICT),
    "a PNG of 20000 x 20000": text(bomb(), "20000 x 20000 pixels", "body[0]",
                                   headers={"Content-Type": "image/png"}, path=PREDICT),
    "an empty image": text(b"", "neither a JPEG", "body[0]", path=PREDICT,
                           headers={"Content-Type": "image/png"}),
    "XML": text(b"<a/>", "'application/xml'; expected", "content-type", status=415, path=PREDICT,
                headers={"Content-Type": "application/xml"}),
    "a form without a boundary": text(PART, "is not a multipart form", path=PREDICT,
                                      headers={"Content-Type": "multipart/form-data"}),
    "a form of nothing": form("truncated multipart form", "body", b""),
    "a form without a file": Bad("holds no file", "form", path=PREDICT,
                                 files={"top_k": (None, "3")}),
    "a form that ends early": form("truncated multipart form", "body", PART),
    "a form that ends within its second file": form("truncated multipart form", "body",
                                                    PART + PART[:-2]),
    "a form of another boundary": form("is not a multipart form", "body",
                                       PART.replace(b"cut", b"cat")),
    "a part without a name": form("is not a multipart form", "body",
                                  PART.replace(b' name="image";', b"") + b"--cut--\r\n"),
    "a part of many headers": form("is not a multipart form", "body",
                                   PART.replace(b"\r\n\r\n", b"\r\na: b" * 9 + b"\r\n\r\n")
                                   + b"--cut--\r\n"),
    "a file that is no image": form("neither a JPEG", "image[0]", PART + b"--cut--\r\n"),
    "65 files": form("more than 64 files", "form", PART * 65 + b"--cut--\r\n"),
    "65 fields": Bad("more than 64 fields", "form", path=PREDICT,
                     files=[(f"f{n}", (None, "x")) for n in range(65)]),
    "a field twice": Bad("is there twice", "form field 'top_k'", path=PREDICT,
                         files=[("top_k", (None, "1")), ("top_k", (None, "2"))]),
    "a long field": Bad("over 4096 bytes", "form field 'x'", path=PREDICT,
                        files={"x": (None, "y" * 5000)}),
    "labels in a form that are text": Bad("'ten'; expected a whole number", "top_k", path=PREDICT,
                                          files={"image": ("a", encoded(32, 32)),
                                                 "top_k": (None, "ten")}),
    "labels of 4,000 digits": Bad("111'; expected a whole number", "top_k", path=PREDICT,
                                  files={"image": ("a", encoded(32, 32)),
                                         "top_k": (None, "1" * 4000)}),
}  # fmt: skip


@pytest.fixture(scope="module")
def http(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.rest, timeout=20) as client:
        yield client


def good(http: httpx.Client) -> None:
    """A good request, which is answered."""
    assert values(http.post(INFER, content=GOOD)).shape == (1, 10)


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, http: httpx.Client) -> None:
    bad = CASES[name]
    answer = bad.send(http)
    assert answer.status_code == bad.status, answer.text
    check_public(answer)
    body = answer.json()
    assert bad.words in body["error"]
    assert body["request_id"] == answer.headers["x-request-id"]
    assert body.get("field", "") == bad.where
    if bad.where:
        assert body["error"].startswith(f"{bad.where}: ")
    assert set(body) <= {"error", "request_id", "field"}
    good(http)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/metrics", 404),
        ("GET", "/v2/", 404),
        ("POST", f"{INFER}/", 404),
        ("GET", "/v2/models/cats", 404),
        ("GET", "/v2/models/cats/ready", 404),
        ("GET", "/v2/models/tiny/versions/2/config", 404),
        ("GET", "/v2/models/tiny%2F..%2Fcats/config", 404),
        ("GET", "/v2/models/%ff%00/stats", 404),
        ("GET", "/v2/models/..%2f..%2fetc%2fpasswd/stats", 404),
        ("GET", INFER, 405),
        ("DELETE", "/v2/models/tiny", 405),
        ("POST", "/v2", 405),
        ("PATCH", PREDICT, 405),
        ("TRACE", "/v2", 405),
    ],
)
def test_unknown_paths_and_methods(method: str, path: str, status: int, http: httpx.Client) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status, answer.text
    check_public(answer)
    assert answer.json()["error"]
    if status == 405:
        assert answer.headers["allow"]


def test_random_bodies_never_kill_it(http: httpx.Client) -> None:
    rng = np.random.default_rng(0)
    content, headers = binary(BATCH, tensor(BATCH))
    sources: list[tuple[str, bytes, dict[str, str]]] = [
        (INFER, GOOD, {}),
        (INFER, content, headers),
        (INFER, gzip.compress(GOOD), {"Content-Encoding": "gzip"}),
        (PREDICT, PART + b"--cut--\r\n", {"Content-Type": "multipart/form-data; boundary=cut"}),
        (PREDICT, encoded(32, 32, "JPEG"), {"Content-Type": "image/jpeg"}),
    ]
    for number in range(200):
        path, body, extra = sources[number % len(sources)]
        data = bytearray(body[: int(rng.integers(1, len(body)))] if rng.random() < 0.3 else body)
        for place in rng.integers(0, min(len(data), 200), 3):
            data[place] = rng.integers(0, 256)
        answer = http.post(path, content=bytes(data), headers=extra)
        assert answer.status_code in (200, 400, 403, 404), answer.text
        check_public(answer)
    good(http)
