"""Protobuf messages to the data plane's requests, and its answers to protobuf messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from firewall.bundle.manifest import Manifest
from firewall.decoding.pixels import to_png
from firewall.errors import InvalidInput
from firewall.screening.certificate import Certificate
from firewall.screening.verdict import Decision, Verdict
from firewall.serve.data_plane import (
    InferOutput,
    InferRequest,
    InferResult,
    ModelDescription,
    NamedInput,
    NativeRequest,
    RequestedOutput,
    Screened,
    check_classification,
    check_shared_memory,
)
from firewall.serve.model import Certified, ServedModel
from firewall.serve.statistics import Duration, Statistics
from firewall.serve.tensors import (
    Batch,
    EncodedImages,
    Limits,
    RawTensor,
    check_image_shape,
    join_bytes_tensor,
    split_bytes_tensor,
)
from firewall.wire import firewall_pb2 as native
from firewall.wire import open_inference_pb2 as oip

#: The field of typed contents that holds each datatype; FP16 travels in raw contents only.
_CONTENTS = {"FP32": "fp32_contents", "UINT8": "uint_contents"}

# --- Open Inference Protocol -------------------------------------------------------------------


def infer_request(message: oip.ModelInferRequest, limits: Limits) -> InferRequest:
    """Read an inference request.

    Raises:
        InvalidInput: tensors and raw contents do not agree, or are not in the message.

    """
    raw = message.raw_input_contents
    if len(message.inputs) != 1:
        raise InvalidInput("inputs", f"{len(message.inputs)} tensors; expected one")
    if len(raw) > 1:
        raise InvalidInput("raw_input_contents", f"{len(raw)} entries for one input; expected 1")
    return InferRequest(
        message.model_name,
        message.model_version,
        message.id,
        _input(message, limits),
        [_requested(number, output) for number, output in enumerate(message.outputs)],
    )


def _input(message: oip.ModelInferRequest, limits: Limits) -> NamedInput:
    tensor, field = message.inputs[0], "inputs[0]"
    if tensor.parameters:
        check_shared_memory(field, tensor.parameters)
    typed = tensor.HasField("contents")
    if message.raw_input_contents:
        if typed:
            raise InvalidInput(
                f"{field}.contents", "set beside raw_input_contents; send one of the two"
            )
        body, data = "raw_input_contents[0]", message.raw_input_contents[0]
        if tensor.datatype == "BYTES":
            images = split_bytes_tensor(data, body, limits)
            check_image_shape(field, tensor.shape, len(images))
            return NamedInput(tensor.name, EncodedImages(body, images))
        return NamedInput(tensor.name, RawTensor(field, body, tensor.datatype, tensor.shape, data))
    if not typed:
        raise InvalidInput(field, "holds no data; send it in raw_input_contents")
    if tensor.datatype == "BYTES":
        images = list(tensor.contents.bytes_contents)
        check_image_shape(field, tensor.shape, len(images))
        return NamedInput(tensor.name, EncodedImages(f"{field}.contents.bytes_contents", images))
    contents = _CONTENTS.get(tensor.datatype)
    if contents is None:
        raise InvalidInput(
            f"{field}.contents",
            f"{tensor.datatype[:32]!r} is not accepted in typed contents; send it raw",
        )
    values = np.fromiter(getattr(tensor.contents, contents), np.float64)
    batch = RawTensor(field, f"{field}.contents.{contents}", tensor.datatype, tensor.shape, values)
    return NamedInput(tensor.name, batch)


def _requested(number: int, output: Any) -> RequestedOutput:
    if not output.parameters:
        return RequestedOutput(output.name)
    field = f"outputs[{number}]"
    check_shared_memory(field, output.parameters)
    if "classification" not in output.parameters:
        return RequestedOutput(output.name)
    parameter = output.parameters["classification"]
    if parameter.WhichOneof("parameter_choice") != "int64_param":
        raise InvalidInput(f"{field}.parameters['classification']", "expected an integer")
    check_classification(field, parameter.int64_param)
    return RequestedOutput(output.name, parameter.int64_param)


def infer_response(result: InferResult) -> oip.ModelInferResponse:
    """Write the answer to an inference."""
    message = oip.ModelInferResponse(
        model_name=result.model, model_version=result.version, id=result.id
    )
    for output in result.outputs:
        message.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        message.raw_output_contents.append(_raw(output))
    for key, value in result.parameters.items():
        message.parameters[key].string_param = value
    return message


def _raw(output: InferOutput) -> bytes:
    if output.values is None:
        return join_bytes_tensor(output.elements)
    little_endian = output.values.dtype.newbyteorder("<")
    return np.ascontiguousarray(output.values, little_endian).tobytes()


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
            tensor(
                name=manifest.output,
                datatype=manifest.scores.datatype,
                shape=[-1, *manifest.score_shape],
            ),
            *(
                tensor(name=one.name, datatype=one.datatype, shape=[-1, *one.shape])
                for one in manifest.other_outputs
            ),
        ],
    )


def model_config(described: ModelDescription) -> oip.ModelConfigResponse:
    """The model's configuration, as Triton's clients read it."""
    spec = described.manifest.input
    config = oip.ModelConfig(
        name=described.manifest.name,
        platform="onnxruntime_onnx",
        backend="onnxruntime",
        max_batch_size=described.max_rows,
    )
    config.input.add(
        name=spec.name,
        data_type=oip.DataType.Value(f"TYPE_{spec.datatype}"),
        format=oip.ModelInput.Format.Value(f"FORMAT_{spec.layout}"),
        dims=spec.shape,
    )
    manifest = described.manifest
    config.output.add(
        name=manifest.output,
        data_type=oip.DataType.Value(f"TYPE_{manifest.scores.datatype}"),
        dims=manifest.score_shape,
    )
    for one in manifest.other_outputs:
        config.output.add(
            name=one.name, data_type=oip.DataType.Value(f"TYPE_{one.datatype}"), dims=one.shape
        )
    return oip.ModelConfigResponse(config=config)


def model_statistics(described: Sequence[ModelDescription]) -> oip.ModelStatisticsResponse:
    """Statistics of models, as Triton's clients read them."""
    return oip.ModelStatisticsResponse(
        model_stats=[
            _statistics(one.manifest.name, one.manifest.version, one.statistics)
            for one in described
        ]
    )


def _statistics(name: str, version: str, counted: Statistics) -> oip.ModelStatistics:
    def duration(kind: str) -> oip.StatisticDuration:
        found: Duration = counted.of(kind)
        return oip.StatisticDuration(count=found.count, ns=int(found.seconds * 1e9))

    kinds = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    return oip.ModelStatistics(
        name=name,
        version=version,
        last_inference=int(counted.last * 1000),
        inference_count=counted.rows,
        execution_count=counted.batches,
        inference_stats=oip.InferStatistics(**{kind: duration(kind) for kind in kinds}),
    )


def repository_index(described: Sequence[ModelDescription]) -> oip.RepositoryIndexResponse:
    """What is served, as Triton's clients read it."""
    return oip.RepositoryIndexResponse(
        models=[
            oip.RepositoryIndexResponse.ModelIndex(
                name=one.manifest.name,
                version=one.manifest.version,
                state="READY" if one.ready else "UNAVAILABLE",
                reason="" if one.ready else "not ready",
            )
            for one in described
        ]
    )


# --- native API ---------------------------------------------------------------------------------


def native_request(
    message: native.PredictRequest | native.ScreenRequest | native.CertifyRequest,
) -> NativeRequest:
    """Read a request of the native API.

    Raises:
        InvalidInput: it holds no input.

    """
    return NativeRequest(
        message.model, message.version, message.request_id, _native_batch(message.input)
    )


def _native_batch(message: native.Input) -> Batch:
    kind = message.WhichOneof("kind")
    if kind == "tensor":
        tensor = message.tensor
        return RawTensor(
            "input.tensor", "input.tensor.data", tensor.datatype, tensor.shape, tensor.data
        )
    if kind == "images":
        return EncodedImages("input.images.encoded", message.images.encoded)
    raise InvalidInput("input", "is empty; send a tensor or images")


def predict_response(screened: Screened, top_k: int, request_id: str) -> native.PredictResponse:
    """Write predictions; refused rows carry no label."""
    probabilities = np.exp(screened.answer.log_probabilities)
    response = native.PredictResponse(
        model=screened.model, version=screened.version, request_id=request_id
    )
    for row, decided in enumerate(screened.answer.decisions):
        prediction = response.predictions.add(decision=decision(decided, screened.disclose))
        if decided.verdict is Verdict.REJECT:
            continue
        for index in np.argsort(-probabilities[row], kind="stable")[:top_k]:
            prediction.labels.add(
                index=int(index),
                name=screened.labels[index],
                probability=float(probabilities[row, index]),
            )
    return response


def screen_response(
    screened: Screened, *, with_pixels: bool, request_id: str
) -> native.ScreenResponse:
    """Write decisions, and what was screened of encoded images."""
    response = native.ScreenResponse(
        model=screened.model,
        version=screened.version,
        request_id=request_id,
        decisions=[decision(one, screened.disclose) for one in screened.answer.decisions],
    )
    if screened.pixels is not None:
        for sha256, pixels in zip(screened.hashes, screened.pixels, strict=True):
            response.screened.add(sha256=sha256, png=to_png(pixels) if with_pixels else b"")
    return response


def decision(decided: Decision, disclose: bool) -> native.Decision:
    """A decision as a client may see it."""
    message = native.Decision(
        verdict=decided.verdict.name,
        reasons=decided.reasons if decided.verdict is not Verdict.ACCEPT else (),
    )
    if disclose and decided.p_value is not None:
        message.diagnostics.CopyFrom(
            native.Diagnostics(
                p_value=decided.p_value,
                statistics=dict(decided.statistics),
                escalated=decided.escalated,
            )
        )
    return message


def certify_response(
    certified: Certified, model: ServedModel, request_id: str
) -> native.CertifyResponse:
    """Write certificates; the message of a refused row is empty, without its class."""
    return native.CertifyResponse(
        model=model.name,
        version=model.manifest.version,
        request_id=request_id,
        certificates=[_certificate(one) for one in certified.bounded],
        smoothed=[_certificate(one) for one in certified.smoothed],
    )


def _certificate(found: Certificate | None) -> native.Certificate:
    if found is None:
        return native.Certificate()
    return native.Certificate(
        label=found.label, norm=found.norm, radius=found.radius, confidence=found.confidence
    )


def describe_response(model: ServedModel) -> native.DescribeResponse:
    """Describe a model, its stages, and its policy."""
    manifest, guard = model.manifest, model.guard
    cheap = guard.calibration.detectors[: guard.calibration.cheap]
    return native.DescribeResponse(
        model=model.name,
        version=manifest.version,
        datatype=manifest.input.datatype,
        layout=manifest.input.layout,
        shape=[-1, *manifest.input.shape],
        classes=manifest.classifier.classes,
        stages=[
            native.Stage(
                kind=stage.kind,
                name=stage.name,
                plugin=stage.plugin,
                tier="cheap" if stage.name in cheap else "expensive",
            )
            for stage in manifest.guard.stages
        ],
        mode=guard.policy.mode,
        false_positive_rate=guard.policy.false_positive_rate,
    )
