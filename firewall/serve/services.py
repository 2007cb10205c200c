"""The two services. Each method reads a message, asks the data plane, writes a message."""

from __future__ import annotations

import time
from typing import Any, cast

import grpc
from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from firewall import __version__
from firewall.errors import InvalidInput
from firewall.guard.span import Span
from firewall.serve import codec
from firewall.serve.call import Call
from firewall.serve.codec import Limits
from firewall.serve.decoder import Decoder
from firewall.serve.interceptors import RawMethod
from firewall.serve.models import Models
from firewall.serve.wire_scan import check_fields
from firewall.wire import firewall_pb2 as native
from firewall.wire import open_inference_pb2 as oip

NATIVE: ServiceDescriptor = native.DESCRIPTOR.services_by_name["FirewallService"]
OPEN_INFERENCE: ServiceDescriptor = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"]


class OpenInferenceService:
    """`inference.GRPCInferenceService`: what a client of Triton, KServe or MLServer speaks."""

    def __init__(self, models: Models, limits: Limits) -> None:
        self._models = models
        self._limits = limits

    def ServerLive(self, request: oip.ServerLiveRequest, call: Call) -> Message:  # noqa: N802
        """Whoever answers is live."""
        return oip.ServerLiveResponse(live=True)

    def ServerReady(self, request: oip.ServerReadyRequest, call: Call) -> Message:  # noqa: N802
        """Whether every model is ready."""
        return oip.ServerReadyResponse(ready=self._models.ready)

    def ModelReady(self, request: oip.ModelReadyRequest, call: Call) -> Message:  # noqa: N802
        """Whether one model is ready."""
        with self._models.lease(request.name, request.version) as model:
            return oip.ModelReadyResponse(ready=model.ready)

    def ServerMetadata(  # noqa: N802
        self, request: oip.ServerMetadataRequest, call: Call
    ) -> Message:
        """Name and version of this server."""
        return oip.ServerMetadataResponse(name="robustness-firewall", version=__version__)

    def ModelMetadata(  # noqa: N802
        self, request: oip.ModelMetadataRequest, call: Call
    ) -> Message:
        """Inputs and outputs of one model."""
        with self._models.lease(request.name, request.version) as model:
            return codec.model_metadata(model.manifest)

    def ModelInfer(self, request: oip.ModelInferRequest, call: Call) -> Message:  # noqa: N802
        """Screen a batch; answer all of it or refuse all of it."""
        call.name("id", request.id)
        with self._models.lease(request.model_name, request.model_version) as model:
            start = time.perf_counter()
            wire = codec.tensor_from_infer(request, model.manifest, self._limits)
            call.spans.append(Span("decode", start, time.perf_counter()))
            answer = model.answer(wire, call)
            return codec.infer_response(request, model.manifest, answer, call.request_id)


class FirewallService:
    """`firewall.v1.FirewallService`: row by row, with reasons."""

    def __init__(self, models: Models, limits: Limits) -> None:
        self._models = models
        self._decoder = Decoder(limits)

    def Predict(self, request: native.PredictRequest, call: Call) -> Message:  # noqa: N802
        """Screen every row and answer those that pass."""
        call.name("request_id", request.request_id)
        with self._models.lease(request.model, request.version, default=True) as model:
            classes = model.manifest.classifier.classes
            if request.top_k > classes:
                raise InvalidInput("top_k", f"{request.top_k}; expected at most {classes}")
            wire = self._decoder.batch(request.input, model.manifest, call)
            answer = model.answer(wire, call)
            disclose = model.guard.policy.disclose == "diagnostics"
            return native.PredictResponse(
                model=model.name,
                version=model.manifest.version,
                request_id=call.request_id,
                predictions=codec.predictions(
                    answer, model.labels, request.top_k or min(5, classes), disclose
                ),
            )

    def Screen(self, request: native.ScreenRequest, call: Call) -> Message:  # noqa: N802
        """Screen every row."""
        call.name("request_id", request.request_id)
        with self._models.lease(request.model, request.version, default=True) as model:
            wire = self._decoder.batch(request.input, model.manifest, call)
            answer = model.answer(wire, call)
            disclose = model.guard.policy.disclose == "diagnostics"
            return native.ScreenResponse(
                model=model.name,
                version=model.manifest.version,
                request_id=call.request_id,
                decisions=[codec.decision(one, disclose) for one in answer.decisions],
            )

    def Certify(self, request: native.CertifyRequest, call: Call) -> Message:  # noqa: N802
        """Bound every row that is not refused."""
        call.name("request_id", request.request_id)
        with self._models.lease(request.model, request.version, default=True) as model:
            model.certifies()
            wire = self._decoder.batch(request.input, model.manifest, call)
            found = model.certify(wire, call)
            return native.CertifyResponse(
                model=model.name,
                version=model.manifest.version,
                request_id=call.request_id,
                certificates=codec.certificates(found.bounded),
                smoothed=codec.certificates(found.smoothed),
            )

    def Describe(self, request: native.DescribeRequest, call: Call) -> Message:  # noqa: N802
        """What is served, and under which policy."""
        with self._models.lease(request.model, request.version, default=True) as model:
            manifest, policy = model.manifest, model.guard.policy
            cheap = model.guard.calibration.detectors[: model.guard.calibration.cheap]
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
                mode=policy.mode,
                false_positive_rate=policy.false_positive_rate,
            )


def generic_handler(descriptor: ServiceDescriptor, servicer: object) -> Any:
    """A gRPC handler of a service whose methods get raw bytes.

    We parse ourselves, so that bytes that are no message are INVALID_ARGUMENT and not gRPC's
    INTERNAL.
    """
    methods: dict[str, Any] = {
        method.name: grpc.unary_unary_rpc_method_handler(
            _raw(getattr(servicer, method.name), GetMessageClass(method.input_type))
        )
        for method in descriptor.methods
    }
    return grpc.method_handlers_generic_handler(descriptor.full_name, methods)


def _raw(method: Any, request_class: type[Message]) -> RawMethod:
    def run(data: bytes, call: Call) -> bytes:
        check_fields(data, cast(Descriptor, request_class.DESCRIPTOR))
        try:
            request = request_class.FromString(data)
        except DecodeError as error:
            raise InvalidInput(
                "message", f"is not a {request_class.DESCRIPTOR.full_name}"
            ) from error
        response: Message = method(request, call)
        return response.SerializeToString()

    return run
