"""HTTP bodies to the data plane's requests, and its answers to HTTP bodies.

JSON of the Open Inference Protocol, Triton's binary tensor extension, and for the native API JSON,
multipart forms, or one image as the whole body.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from pydantic import ValidationError
from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from firewall.errors import InvalidInput, TooLarge, UnsupportedMedia
from firewall.serve.data_plane import (
    InferOutput,
    InferRequest,
    InferResult,
    NamedInput,
    NativeRequest,
    RequestedOutput,
    check_classification,
    check_shared_memory,
)
from firewall.serve.json_memory import JsonMemory
from firewall.serve.rest_models import (
    InferenceRequest,
    NativeBody,
    Parameters,
    RequestInput,
    RequestOutput,
)
from firewall.serve.status import Failure
from firewall.serve.tensors import (
    Batch,
    EncodedImages,
    Limits,
    RawTensor,
    check_image_shape,
    join_bytes_tensor,
    split_bytes_tensor,
)

#: Header that says how many bytes of the body are JSON; the rest are tensors.
BINARY_HEADER = "inference-header-content-length"
#: How many times as large a compressed body may become, beyond a mebibyte.
MAX_INFLATION, _INFLATED_FREELY = 16, 1 << 20
Model = TypeVar("Model", InferenceRequest, NativeBody)
_JSON, _OCTETS = "application/json", "application/octet-stream"
#: Bytes of the fields of a form that are not files, and how many of them there may be.
MAX_FORM_FIELD, MAX_FORM_FIELDS = 4096, 64
#: Bounds of a form's part, whose headers are parsed byte by byte; files stay in memory, since the
#: disk may be read-only and is no place for clients' images.
_FORM = {"MAX_HEADER_COUNT": 8, "MAX_HEADER_SIZE": 1024, "MAX_MEMORY_FILE_SIZE": float("inf")}
#: Lists and objects of a JSON body: 3 bytes make one of 60 to 70.
_MAX_CONTAINERS = 1 << 20


@dataclass(frozen=True)
class Request:
    """An HTTP request after its body has been read.

    Attributes:
        body: as it came.
        headers: by lower-case name.
        path: parameters of the route.
        max_bytes: of a body after decompression.
        json_memory: shared by bodies that are parsed.

    """

    body: bytes
    headers: Mapping[str, str]
    path: Mapping[str, str]
    max_bytes: int
    json_memory: JsonMemory

    @property
    def media_type(self) -> str:
        """Lower-case media type without parameters; empty when not given."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def is_plain(self) -> bool:
        """Whether the body is not compressed."""
        return self.headers.get("content-encoding", "identity") in ("", "identity")

    def content(self) -> bytes:
        """The body after decompression.

        Raises:
            TooLarge: over `max_bytes`.
            InvalidInput: the body is not what its content-encoding says.
            UnsupportedMedia: another content-encoding.

        """
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        if encoding in ("", "identity"):
            return self.body
        if encoding not in ("gzip", "deflate"):
            raise UnsupportedMedia(
                "content-encoding", f"{encoding[:32]!r}; expected gzip or deflate"
            )
        # 32 + window bits: gzip and zlib by their own headers.
        inflater = zlib.decompressobj(32 + zlib.MAX_WBITS)
        # Zeros deflate a thousandfold: a small body must not become a large one.
        limit = min(self.max_bytes, max(_INFLATED_FREELY, MAX_INFLATION * len(self.body)))
        try:
            content = inflater.decompress(self.body, limit + 1)
        except zlib.error as error:
            raise InvalidInput("body", f"is not {encoding} data") from error
        if len(content) > limit:
            raise TooLarge(f"body: over {limit} bytes after decompression")
        if not inflater.eof:
            raise InvalidInput("body", f"is truncated {encoding} data")
        if inflater.unused_data:
            # Such as a second gzip member, which another reader would take for a part of the body.
            raise InvalidInput("body", f"holds more than one stream of {encoding} data")
        return content


@dataclass(frozen=True)
class Response:
    """An HTTP answer."""

    body: bytes
    media_type: str = _JSON
    headers: Mapping[str, str] | None = None
    status: int = 200


def json_response(body: object, status: int = 200) -> Response:
    """JSON without NaN or infinity."""
    return Response(json.dumps(body, allow_nan=False).encode(), status=status)


def failure_response(failed: Failure) -> Response:
    """A failure in the protocol's own form, with what else a client can use."""
    body: dict[str, Any] = {"error": failed.text, "request_id": failed.request_id}
    if failed.reason:
        body |= {"reason": failed.reason, "rows": list(failed.rows)}
    if failed.field:
        body["field"] = failed.field
    headers = {}
    if failed.retry_after is not None:
        # Whole seconds, rounded up: RFC 9110 knows no fractions.
        headers["Retry-After"] = str(max(1, int(-(-failed.retry_after // 1))))
    if failed.http == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(json.dumps(body, allow_nan=False).encode(), headers=headers, status=failed.http)


# --- Open Inference Protocol -------------------------------------------------------------------


@dataclass(frozen=True)
class AskedInference:
    """An inference request, and for each output whether it is answered as binary data."""

    request: InferRequest
    binary: Sequence[bool]
    binary_default: bool

    def is_binary(self, output: int) -> bool:
        """Whether an output is answered after the JSON."""
        return self.binary[output] if output < len(self.binary) else self.binary_default


def infer_request(request: Request, limits: Limits) -> AskedInference:
    """Read an inference request.

    Raises:
        InvalidInput: naming the field.
        TooLarge, Overloaded: as `JsonMemory.held`.

    """
    content = request.content()
    header = request.headers.get(BINARY_HEADER)
    size = len(content) if header is None else _header_length(header, len(content))
    head = content[:size]
    with request.json_memory.held(head):
        return _infer_request(request, content, head, limits)


def _infer_request(request: Request, content: bytes, head: bytes, limits: Limits) -> AskedInference:
    size = len(head)
    parsed = _validated(_parse_json(head), InferenceRequest)
    if len(parsed.inputs) != 1:
        raise InvalidInput("inputs", f"{len(parsed.inputs)} tensors; expected one")
    [tensor] = parsed.inputs
    batch = _batch("inputs[0]", tensor, memoryview(content)[size:], limits)
    outputs = parsed.outputs or []
    default = _flag("parameters", parsed.parameters, "binary_data_output", default=False)
    return AskedInference(
        InferRequest(
            request.path["model"],
            request.path.get("version", ""),
            parsed.id,
            NamedInput(tensor.name, batch),
            [_requested(number, output) for number, output in enumerate(outputs)],
        ),
        [
            _flag(f"outputs[{number}].parameters", output.parameters, "binary_data", default)
            for number, output in enumerate(outputs)
        ],
        default,
    )


def wants_ready(request: Request) -> bool:
    """Whether an index of models leaves out those that are not ready; an empty body does not.

    Raises:
        InvalidInput: the body is not an object with a Boolean.

    """
    content = request.content()
    if not content.strip():
        return False
    with request.json_memory.held(content):
        body = _parse_json(content)
    ready = body.get("ready", False) if isinstance(body, dict) else None
    if not isinstance(ready, bool):
        raise InvalidInput("ready", "expected true or false, in a JSON object")
    return ready


def _flag(field: str, parameters: Parameters | None, key: str, default: bool) -> bool:
    value = (parameters or {}).get(key, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"{field}[{key!r}]", "expected true or false")
    return value


def _header_length(header: str, size: int) -> int:
    # Numbers of thousands of digits cannot be converted.
    if not (header.isascii() and header.isdigit() and len(header) < 20) or int(header) > size:
        raise InvalidInput(
            "Inference-Header-Content-Length",
            f"{header[:32]!r}; expected the JSON's length, at most {size} bytes",
        )
    return int(header)


def _batch(field: str, tensor: RequestInput, tail: memoryview, limits: Limits) -> Batch:
    """The batch of an input, whose data is in the JSON or is `tail`, the bytes after it."""
    parameters = tensor.parameters or {}
    check_shared_memory(field, parameters)
    if "binary_data_size" in parameters:
        if tensor.data is not None:
            raise InvalidInput(f"{field}.data", "set beside binary_data_size; send one of the two")
        size = parameters["binary_data_size"]
        if not isinstance(size, int) or isinstance(size, bool) or size != len(tail):
            raise InvalidInput(
                f"{field}.parameters['binary_data_size']",
                f"{str(size)[:32]}; {len(tail)} bytes follow the JSON",
            )
        body = f"{field} (binary data)"
        if tensor.datatype == "BYTES":
            images = split_bytes_tensor(tail, body, limits)
            check_image_shape(field, tensor.shape, len(images))
            return EncodedImages(body, images)
        return RawTensor(field, body, tensor.datatype, tensor.shape, tail)
    if len(tail):
        raise InvalidInput("body", f"{len(tail)} bytes after the JSON; expected none")
    if tensor.data is None:
        raise InvalidInput(field, "holds no data; send data, or binary data after the JSON")
    data = f"{field}.data"
    if tensor.datatype == "BYTES":
        images = _decoded_images(data, tensor.data, limits)
        check_image_shape(field, tensor.shape, len(images))
        return EncodedImages(data, images)
    return RawTensor(field, data, tensor.datatype, tensor.shape, _flat(tensor.data, data))


def _flat(data: list[Any], field: str) -> npt.NDArray[np.float64]:
    """Nested or flat lists of numbers as one flat array.

    numpy would make text of a list that holds text, each element as long as the longest, or take
    text for numbers; `array` takes numbers alone.
    """
    level = data
    while level and isinstance(level[0], list):
        size = len(level[0])
        if not all(isinstance(part, list) and len(part) == size for part in level):
            raise InvalidInput(field, "is ragged; expected lists of equal length")
        level = list(chain.from_iterable(level))
    try:
        values = array("d", level)
    except (TypeError, OverflowError) as error:
        raise InvalidInput(field, "expected numbers") from error
    if bool in set(map(type, level)):
        raise InvalidInput(field, "expected numbers; true and false are none")
    return np.frombuffer(values, np.float64)


def _decoded_images(field: str, texts: Sequence[Any], limits: Limits) -> list[bytes]:
    if len(texts) > limits.rows:
        raise InvalidInput(field, f"{len(texts)} images; at most {limits.rows}")
    images = []
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInput(f"{field}[{number}]", "expected a file as base64 text")
        try:
            images.append(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError) as error:
            raise InvalidInput(f"{field}[{number}]", "is not base64 text") from error
    return images


def _requested(number: int, output: RequestOutput) -> RequestedOutput:
    field, parameters = f"outputs[{number}]", output.parameters or {}
    check_shared_memory(field, parameters)
    if "classification" not in parameters:
        return RequestedOutput(output.name)
    top = parameters["classification"]
    if not isinstance(top, int) or isinstance(top, bool):
        raise InvalidInput(f"{field}.parameters['classification']", "expected a whole number")
    check_classification(field, top)
    return RequestedOutput(output.name, top)


def infer_response(result: InferResult, asked: AskedInference) -> Response:
    """Write the answer to an inference, as JSON alone or with binary data after it."""
    outputs: list[dict[str, Any]] = []
    tensors: list[bytes] = []
    for number, output in enumerate(result.outputs):
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
        }
        if asked.is_binary(number):
            raw = _raw(output)
            entry["parameters"] = {"binary_data_size": len(raw)}
            tensors.append(raw)
        else:
            entry["data"] = _listed(output)
        outputs.append(entry)
    body: dict[str, Any] = {"model_name": result.model, "model_version": result.version}
    if result.id:
        body["id"] = result.id
    if result.parameters:
        body["parameters"] = dict(result.parameters)
    body["outputs"] = outputs
    text = json.dumps(body, allow_nan=False).encode()
    if not tensors:
        return Response(text)
    headers = {BINARY_HEADER.title(): str(len(text))}
    return Response(b"".join((text, *tensors)), _OCTETS, headers)


def _raw(output: InferOutput) -> bytes:
    if output.values is None:
        return join_bytes_tensor(output.elements)
    little_endian = output.values.dtype.newbyteorder("<")
    return np.ascontiguousarray(output.values, little_endian).tobytes()


def _listed(output: InferOutput) -> list[Any]:
    if output.values is None:
        return [element.decode() for element in output.elements]
    values: list[Any] = output.values.ravel().tolist()
    if np.isfinite(output.values).all():
        return values
    # JSON has no NaN: the values of a withheld row are null.
    return [value if np.isfinite(value) else None for value in values]


# --- native API ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class AskedNative:
    """A native request with the options of its methods."""

    request: NativeRequest
    top_k: int = 0
    pixels: bool = False


def native_request(request: Request, limits: Limits) -> AskedNative:
    """Read a request of the native API.

    Raises:
        InvalidInput: naming the field.
        UnsupportedMedia: a media type other than JSON, a multipart form, or an image.

    """
    media_type = request.media_type
    if media_type == "multipart/form-data":
        return _from_form(request, limits)
    if media_type.startswith("image/"):
        return _native(request, EncodedImages("body", [request.content()]), {})
    if media_type not in (_JSON, "", "application/x-www-form-urlencoded"):
        raise UnsupportedMedia(
            "content-type",
            f"{media_type[:64]!r}; expected application/json, multipart/form-data or an image",
        )
    content = request.content()
    with request.json_memory.held(content):
        return _from_json(request, content, limits)


def _from_json(request: Request, content: bytes, limits: Limits) -> AskedNative:
    body = _validated(_parse_json(content), NativeBody)
    if (body.tensor is None) == (body.images is None):
        raise InvalidInput("body", "expected one of tensor and images")
    batch: Batch
    if body.tensor is not None:
        batch = RawTensor(
            "tensor",
            "tensor.data",
            body.tensor.datatype,
            body.tensor.shape,
            _flat(body.tensor.data, "tensor.data"),
        )
    else:
        batch = EncodedImages("images", _decoded_images("images", body.images or [], limits))
    fields = {
        "version": body.version,
        "request_id": body.request_id,
        "top_k": str(body.top_k),
        "pixels": str(body.pixels),
    }
    return _native(request, batch, fields)


def _from_form(request: Request, limits: Limits) -> AskedNative:
    """Every file of a form is an image; other fields are the request's options."""
    fields: dict[str, str] = {}
    images: list[bytes] = []

    def on_field(field: Any) -> None:
        name = (field.field_name or b"").decode("utf-8", "replace")
        value = field.value or b""
        if len(value) > MAX_FORM_FIELD:
            raise InvalidInput(f"form field {name[:64]!r}", f"over {MAX_FORM_FIELD} bytes")
        if name in fields:
            raise InvalidInput(f"form field {name[:64]!r}", "is there twice")
        if len(fields) >= MAX_FORM_FIELDS:
            raise InvalidInput("form", f"more than {MAX_FORM_FIELDS} fields beside the files")
        fields[name] = value.decode("utf-8", "replace")

    def on_file(file: Any) -> None:
        if len(images) >= limits.rows:
            raise InvalidInput("form", f"more than {limits.rows} files")
        file.file_object.seek(0)
        images.append(file.file_object.read())
        file.close()

    _, options = parse_options_header(request.headers["content-type"])
    boundary, content = options.get(b"boundary"), request.content()
    max_parts = limits.rows + MAX_FORM_FIELDS
    # Counted first: a file full of boundaries takes the parser a third of a microsecond a byte.
    if boundary and content.count(b"\r\n--" + boundary) > max_parts + 1:
        raise InvalidInput("form", f"more than {max_parts} parts")
    ended: list[bool] = []
    try:
        parser = FormParser(
            "multipart/form-data",
            on_field,
            on_file,
            on_end=lambda: ended.append(True),
            boundary=boundary,
            config=_FORM,
        )
        parser.write(content)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise InvalidInput("body", "is not a multipart form") from error
    if not ended:
        raise InvalidInput("body", "is a truncated multipart form")
    if not images:
        raise InvalidInput("form", "holds no file; expected an image, as curl -F image=@cat.jpg")
    return _native(request, EncodedImages("image", images), fields)


def _native(request: Request, batch: Batch, fields: Mapping[str, str]) -> AskedNative:
    top_k = fields.get("top_k", "0")
    if not (top_k.isascii() and top_k.isdigit() and len(top_k) <= 10):
        raise InvalidInput("top_k", f"{top_k[:32]!r}; expected a whole number")
    return AskedNative(
        NativeRequest(
            request.path["model"],
            fields.get("version", ""),
            fields.get("request_id", ""),
            batch,
        ),
        int(top_k),
        fields.get("pixels", "").lower() in ("1", "true", "yes"),
    )


def message_json(message: Message) -> dict[str, Any]:
    """A protobuf message as JSON with its own field names, fields of value 0 or "" included.

    Unlike protobuf's own mapping, 64-bit numbers stay numbers: Triton's clients read them so.
    Bytes that are empty are left out, and so are messages that are not set.
    """
    body: dict[str, Any] = {}
    for field in cast(Sequence[FieldDescriptor], message.DESCRIPTOR.fields):
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            body[field.name] = {key: _finite(item) for key, item in value.items()}
        elif field.is_repeated:
            body[field.name] = [_plain(field, item) for item in value]
        elif message.HasField(field.name) if field.has_presence else value != b"":
            body[field.name] = _plain(field, value)
    return body


def _plain(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Message):
        return message_json(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return _finite(value)


def _finite(value: Any) -> Any:
    """The value, or None for NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse_json(data: bytes) -> Any:
    if data.count(b"[") + data.count(b"{") > _MAX_CONTAINERS:
        raise InvalidInput(
            "body", f"more than {_MAX_CONTAINERS} lists and objects; send tensors flat or as binary"
        )
    try:
        # UTF-8 alone: json would also guess UTF-16 and UTF-32.
        return json.loads(str(data, "utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("body", "is not JSON") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are distinct: of two, another reader may take the other."""
    body = dict(pairs)
    if len(body) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InvalidInput("body", f"key {twice[:64]!r} is there twice in one object")
    return body


def _validated(body: Any, model: type[Model]) -> Model:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]
        )
        raise InvalidInput(path.lstrip(".")[:128] or "body", first["msg"]) from error
