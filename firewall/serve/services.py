"""The two services. Each method reads a message, asks the data plane, writes a message."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import grpc
import numpy.typing as npt
from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from firewall import __version__
from firewall.errors import InvalidInput
from firewall.screening.span import Span
from firewall.serve import codec
from firewall.serve.boundary import RawMethod
from firewall.serve.call import Call
from firewall.serve.codec import Limits
from firewall.serve.decoder import Decoder
from firewall.serve.known_header import KnownHeaders
from firewall.serve.models import Models
from firewall.serve.runtime import ServedModel
from firewall.serve.staged import Steps, finish
from firewall.serve.wire_scan import check_fields
from firewall.wire import firewall_pb2 as native
from firewall.wire import open_inference_pb2 as oip

Request = TypeVar("Request", bound=Message)

NATIVE: ServiceDescriptor = native.DESCRIPTOR.services_by_name["FirewallService"]
OPEN_INFERENCE: ServiceDescriptor = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"]


class OpenInferenceService:
    """`inference.GRPCInferenceService`: what a client of Triton, KServe or MLServer speaks."""

    def __init__(self, models: Models, limits: Limits) -> None:
        self._models = models
        self._limits = limits
        self._known = KnownHeaders()

    def raw_methods(self) -> Mapping[str, RawMethod]:
        """All methods, by name."""
        methods = message_methods(OPEN_INFERENCE, self)
        return methods | {"ModelInfer": RawMethod(self.model_infer, self.inferring)}

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

    def model_infer(self, data: bytes, call: Call) -> bytes:
        """Screen a batch; answer all of it or refuse all of it. From bytes to bytes."""
        return finish(self.inferring(data, call))

    def inferring(self, data: bytes, call: Call) -> Steps[bytes]:
        """The same in steps."""
        known = self._known.find(data)
        if known is not None:
            with self._models.lease(known.model, known.version) as model:
                if model.manifest is known.manifest:
                    start = time.perf_counter()
                    wire = known.tensor(data)
                    call.spans.append(Span("decode", start, time.perf_counter()))
                    return (yield from self._infer("", model, wire, call, codec.RAW))
        start = time.perf_counter()
        request = parsed(data, oip.ModelInferRequest)
        call.name("id", request.id)
        with self._models.lease(request.model_name, request.model_version) as model:
            wire = codec.tensor_from_infer(request, model.manifest, self._limits)
            self._known.keep(data, request, model.manifest, wire.shape)
            call.spans.append(Span("decode", start, time.perf_counter()))
            return (yield from self._infer(request.id, model, wire, call))

    def _infer(
        self,
        request_id: str,
        model: ServedModel,
        wire: npt.NDArray[Any],
        call: Call,
        unchecked: str = "",
    ) -> Steps[bytes]:
        answer = yield from model.answering(wire, call, unchecked)
        return codec.infer_response(request_id, model.manifest, answer, call.request_id)


class FirewallService:
    """`firewall.v1.FirewallService`: row by row, with reasons."""

    def __init__(self, models: Models, limits: Limits) -> None:
        self._models = models
        self._decoder = Decoder(limits)

    def raw_methods(self) -> Mapping[str, RawMethod]:
        """All methods, by name."""
        return message_methods(NATIVE, self)

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


def generic_handler(descriptor: ServiceDescriptor, methods: Mapping[str, RawMethod]) -> Any:
    """A gRPC handler of a service whose methods get raw bytes.

    We parse ourselves, so that bytes that are no message are INVALID_ARGUMENT and not gRPC's
    INTERNAL.
    """
    handlers: dict[str, Any] = {
        # Not called by gRPC: `Interceptor` makes handlers of them.
        method.name: grpc.unary_unary_rpc_method_handler(cast(Any, methods[method.name]))
        for method in descriptor.methods
    }
    return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)


def named(service: ServiceDescriptor, methods: Mapping[str, RawMethod]) -> dict[str, RawMethod]:
    """The methods of a service by path."""
    return {f"/{service.full_name}/{name}": raw for name, raw in methods.items()}


def message_methods(descriptor: ServiceDescriptor, servicer: object) -> dict[str, RawMethod]:
    """Of a servicer whose methods take a message and answer one; what it lacks is left out."""
    return {
        method.name: RawMethod(
            _raw(getattr(servicer, method.name), GetMessageClass(method.input_type))
        )
        for method in descriptor.methods
        if hasattr(servicer, method.name)
    }


def parsed(data: bytes, request_class: type[Request]) -> Request:
    """A message.

    Raises:
        InvalidInput: the bytes are none, or hold too many fields.

    """
    check_fields(data, cast(Descriptor, request_class.DESCRIPTOR))
    try:
        return request_class.FromString(data)
    except DecodeError as error:
        raise InvalidInput("message", f"is not a {request_class.DESCRIPTOR.full_name}") from error


def _raw(method: Any, request_class: type[Message]) -> Callable[[bytes, Call], bytes]:
    def run(data: bytes, call: Call) -> bytes:
        response: Message = method(parsed(data, request_class), call)
        return response.SerializeToString()

    return run
