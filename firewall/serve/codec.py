"""All translation between protobuf messages and the data plane."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.bundle.manifest import Manifest
from firewall.bundle.spec import InputSpec
from firewall.errors import InvalidInput, Refused
from firewall.screening.certificate import Certificate
from firewall.screening.compiled import log_softmax
from firewall.screening.preprocess import NUMPY_DTYPES, check_values, decode_image, to_wire
from firewall.screening.verdict import Answer, Decision, Verdict
from firewall.wire import firewall_pb2 as native
from firewall.wire import open_inference_pb2 as oip

#: The field of typed contents that holds each datatype; FP16 is raw only.
_CONTENTS = {"FP32": "fp32_contents", "UINT8": "uint_contents"}
#: The field of a tensor on the Open Inference Protocol.
RAW = "raw_input_contents[0]"
_SHARED_MEMORY = "shared_memory_"
#: Tag of `raw_output_contents`: field 6, length-delimited.
_RAW_OUTPUT = bytes([6 << 3 | 2])


@dataclass(frozen=True)
class Limits:
    """What one request may hold."""

    rows: int = 64
    pixels: int = 50_000_000


# --- Open Inference Protocol -------------------------------------------------------------------


def tensor_from_infer(
    request: oip.ModelInferRequest, manifest: Manifest, limits: Limits
) -> npt.NDArray[Any]:
    """The batch of an inference request, validated, [N, *input shape].

    Raises:
        InvalidInput: naming the field, the value and what would be right.

    """
    spec = manifest.input
    if len(request.inputs) != 1:
        raise InvalidInput(
            "inputs", f"{len(request.inputs)} tensors; expected one, named {spec.name!r}"
        )
    tensor = request.inputs[0]
    if tensor.name != spec.name:
        raise InvalidInput("inputs[0].name", f"{tensor.name[:64]!r}; expected {spec.name!r}")
    for key in tensor.parameters:
        if key.startswith(_SHARED_MEMORY):
            raise InvalidInput(
                f"inputs[0].parameters[{key[:64]!r}]",
                "shared memory is not served; send the tensor in raw_input_contents",
            )
    _check_outputs(request, manifest)
    typed = tensor.HasField("contents")
    if request.raw_input_contents:
        if typed:
            raise InvalidInput(
                "inputs[0].contents", "set beside raw_input_contents; send one of the two"
            )
        if len(request.raw_input_contents) != 1:
            raise InvalidInput(
                "raw_input_contents",
                f"{len(request.raw_input_contents)} entries for one input; expected 1",
            )
        return wire_tensor(
            "inputs[0]",
            RAW,
            tensor.datatype,
            tensor.shape,
            request.raw_input_contents[0],
            spec,
            limits,
        )
    if not typed:
        raise InvalidInput("inputs[0]", "holds no data; send it in raw_input_contents")
    shape = _check_header("inputs[0]", tensor.datatype, tensor.shape, spec, limits)
    field = _CONTENTS.get(spec.datatype)
    if field is None:
        raise InvalidInput(
            "inputs[0].contents", f"{spec.datatype} has no typed contents; send it raw"
        )
    values = getattr(tensor.contents, field)
    if len(values) != math.prod(shape):
        raise InvalidInput(
            f"inputs[0].contents.{field}",
            f"{len(values)} values; shape {list(shape)} has {math.prod(shape)}",
        )
    array = np.fromiter(values, np.int64 if spec.datatype == "UINT8" else np.float32, len(values))
    if spec.datatype == "UINT8" and len(array) and array.max() > 255:
        raise InvalidInput(f"inputs[0].contents.{field}", "a value over 255; expected UINT8")
    wire = array.astype(NUMPY_DTYPES[spec.datatype]).reshape(shape)
    check_values(wire, spec, f"inputs[0].contents.{field}")
    return wire


def _check_outputs(request: oip.ModelInferRequest, manifest: Manifest) -> None:
    for number, output in enumerate(request.outputs):
        if output.name != manifest.output:
            raise InvalidInput(
                f"outputs[{number}].name", f"{output.name[:64]!r}; expected {manifest.output!r}"
            )
        for key in output.parameters:
            if key.startswith(_SHARED_MEMORY) or key == "classification":
                raise InvalidInput(
                    f"outputs[{number}].parameters[{key[:64]!r}]",
                    "is not served; read the whole tensor from raw_output_contents",
                )


def infer_response(
    request_id_field: str, manifest: Manifest, answer: Answer, request_id: str
) -> bytes:
    """The answer to an inference request: an `oip.ModelInferResponse` on the wire.

    Args:
        request_id_field: `id` of the request, which the answer has too.
        manifest: of the model.
        answer: to all rows.
        request_id: for the refusal.

    Raises:
        Refused: naming the rows that were rejected; then nothing of the batch is answered.

    """
    rejected = [row for row, one in enumerate(answer.decisions) if one.verdict is Verdict.REJECT]
    if rejected:
        # Not all of thousands: status text travels in headers, which are small.
        rows = ", ".join(str(row) for row in rejected[:32])
        if len(rejected) > 32:
            rows += f" and {len(rejected) - 32} more"
        raise Refused(
            f"suspected adversarial input in row{'s' if len(rejected) > 1 else ''} {rows}; "
            f"request id {request_id}",
            request_id,
        )
    raw = np.ascontiguousarray(answer.outputs, "<f4").tobytes()
    # Messages that follow each other are one: what never changes is written once.
    head = _response_head(manifest.name, manifest.version, manifest.output, answer.outputs.shape)
    own = (
        b""
        if not request_id_field
        else oip.ModelInferResponse(id=request_id_field).SerializeToString()
    )
    return b"".join((head, own, _RAW_OUTPUT, _varint(len(raw)), raw))


@lru_cache(maxsize=256)
def _response_head(model: str, version: str, output: str, shape: tuple[int, ...]) -> bytes:
    """All of an answer but its id and its tensor."""
    return oip.ModelInferResponse(
        model_name=model,
        model_version=version,
        outputs=[
            oip.ModelInferResponse.InferOutputTensor(name=output, datatype="FP32", shape=shape)
        ],
    ).SerializeToString()


def _varint(value: int) -> bytes:
    """As protobuf writes a length."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def model_metadata(manifest: Manifest) -> oip.ModelMetadataResponse:
    """Inputs and outputs as a client of the bare classifier would see them."""
    tensor = oip.ModelMetadataResponse.TensorMetadata
    return oip.ModelMetadataResponse(
        name=manifest.name,
        versions=[manifest.version],
        platform="onnxruntime_onnx",
        inputs=[
            tensor(
                name=manifest.input.name,
                datatype=manifest.input.datatype,
                shape=[-1, *manifest.input.shape],
            )
        ],
        outputs=[
            tensor(name=manifest.output, datatype="FP32", shape=[-1, manifest.classifier.classes])
        ],
    )


# --- native API ---------------------------------------------------------------------------------


def tensor_from_input(
    message: native.Input,
    manifest: Manifest,
    limits: Limits,
    between: Callable[[], None] = lambda: None,
) -> npt.NDArray[Any]:
    """The batch of a native request, validated, [N, *input shape].

    Args:
        message: tensor or encoded images.
        manifest: of the model.
        limits: what one request may hold.
        between: called before each image; raises to stop work that nobody waits for.

    Raises:
        InvalidInput: naming the field, the value and what would be right.

    """
    kind = message.WhichOneof("kind")
    if kind == "tensor":
        tensor = message.tensor
        return wire_tensor(
            "input.tensor",
            "input.tensor.data",
            tensor.datatype,
            tensor.shape,
            tensor.data,
            manifest.input,
            limits,
        )
    if kind == "images":
        encoded = message.images.encoded
        _check_rows("input.images.encoded", len(encoded), limits)
        pixels = []
        for row, image in enumerate(encoded):
            between()
            pixels.append(
                decode_image(
                    image,
                    manifest.input,
                    manifest.preprocessing,
                    field=f"input.images.encoded[{row}]",
                    max_pixels=limits.pixels,
                )
            )
        return to_wire(np.stack(pixels), manifest.input)
    raise InvalidInput("input", "is empty; send a tensor or images")


def decision(one: Decision, disclose: bool) -> native.Decision:
    """A decision as a client may see it."""
    message = native.Decision(
        verdict=one.verdict.name,
        reasons=one.reasons if one.verdict is not Verdict.ACCEPT else (),
    )
    if disclose and one.p_value is not None:
        message.diagnostics.CopyFrom(
            native.Diagnostics(
                p_value=one.p_value, statistics=dict(one.statistics), escalated=one.escalated
            )
        )
    return message


def predictions(
    answer: Answer, labels: Sequence[str], top_k: int, disclose: bool
) -> list[native.Prediction]:
    """One prediction a row; rejected rows carry no label."""
    probabilities = np.exp(log_softmax(answer.outputs))
    messages: list[native.Prediction] = []
    for row, one in enumerate(answer.decisions):
        message = native.Prediction(decision=decision(one, disclose))
        if one.verdict is not Verdict.REJECT:
            for index in np.argsort(-probabilities[row], kind="stable")[:top_k]:
                message.labels.append(
                    native.Label(
                        index=int(index),
                        name=labels[index],
                        probability=float(probabilities[row, index]),
                    )
                )
        messages.append(message)
    return messages


def certificates(found: Sequence[Certificate | None]) -> list[native.Certificate]:
    """As a client sees them; of a refused row nothing, its class neither."""
    return [
        native.Certificate()
        if one is None
        else native.Certificate(
            label=one.label, norm=one.norm, radius=one.radius, confidence=one.confidence
        )
        for one in found
    ]


# --- tensors ------------------------------------------------------------------------------------


def wire_tensor(
    header: str,
    body: str,
    datatype: str,
    shape: Sequence[int],
    data: bytes,
    spec: InputSpec,
    limits: Limits,
) -> npt.NDArray[Any]:
    """Raw bytes as an array, without a copy.

    Args:
        header: name of the field that holds datatype and shape, for errors.
        body: name of the field that holds the bytes.
        datatype: as sent.
        shape: as sent.
        data: row-major, little-endian.
        spec: what the model takes.
        limits: what one request may hold.

    """
    rows = _check_header(header, datatype, shape, spec, limits)
    dtype = np.dtype(NUMPY_DTYPES[spec.datatype]).newbyteorder("<")
    expected = math.prod(rows) * dtype.itemsize
    if len(data) != expected:
        raise InvalidInput(
            body,
            f"{len(data)} bytes; shape {list(rows)} of {spec.datatype} has {expected}",
        )
    wire = np.frombuffer(data, dtype).reshape(rows)
    check_values(wire, spec, body)
    return wire


def _check_header(
    header: str, datatype: str, shape: Sequence[int], spec: InputSpec, limits: Limits
) -> tuple[int, ...]:
    if datatype != spec.datatype:
        raise InvalidInput(f"{header}.datatype", f"{datatype[:32]!r}; expected {spec.datatype!r}")
    wanted = f"[rows, {', '.join(str(size) for size in spec.shape)}]"
    # A shape may be thousands of numbers long; nobody wants them back.
    shown = f"{list(shape[:8])}{' and more' if len(shape) > 8 else ''}"
    if len(shape) != 4 or tuple(shape[1:]) != spec.shape:
        raise InvalidInput(f"{header}.shape", f"{shown}; expected {wanted}")
    _check_rows(f"{header}.shape", shape[0], limits)
    return tuple(shape)


def _check_rows(field: str, rows: int, limits: Limits) -> None:
    if not 1 <= rows <= limits.rows:
        raise InvalidInput(field, f"{rows} rows; expected 1 to {limits.rows}")
