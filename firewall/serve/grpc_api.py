"""The gRPC services. Each method reads a message, asks the data plane, and writes a message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from firewall import __version__
from firewall.errors import InvalidInput
from firewall.serve import converters
from firewall.serve.auth import certificate_name, peer_address
from firewall.serve.context import RequestContext
from firewall.serve.data_plane import DataPlane
from firewall.serve.message_limits import check_fields
from firewall.serve.pipeline import Incoming, RequestPipeline
from firewall.serve.receive import MessageReceiver
from firewall.serve.status import REQUEST_ID_KEY, grpc_status
from firewall.wire import firewall_pb2 as native
from firewall.wire import open_inference_pb2 as oip

Request = TypeVar("Request", bound=Message)

NATIVE: ServiceDescriptor = native.DESCRIPTOR.services_by_name["FirewallService"]
OPEN_INFERENCE: ServiceDescriptor = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"]

#: Seconds beyond which gRPC's "no deadline" lies, which it reports as a number of years.
_NO_DEADLINE = 1e7
#: Extensions of the Open Inference Protocol that are served, as Triton names them.
EXTENSIONS = ("classification", "model_configuration", "statistics", "model_repository")


class OpenInferenceService:
    """`inference.GRPCInferenceService`, as clients of Triton, KServe and MLServer speak it."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def ServerLive(self, request: oip.ServerLiveRequest, _: RequestContext) -> Message:
        """Answer that the process lives."""
        return oip.ServerLiveResponse(live=True)

    def ServerReady(self, request: oip.ServerReadyRequest, _: RequestContext) -> Message:
        """Answer whether every model is ready."""
        return oip.ServerReadyResponse(ready=self._plane.ready)

    def ModelReady(self, request: oip.ModelReadyRequest, _: RequestContext) -> Message:
        """Answer whether one model is ready."""
        return oip.ModelReadyResponse(
            ready=self._plane.describe(request.name, request.version).ready
        )

    def ServerMetadata(self, request: oip.ServerMetadataRequest, _: RequestContext) -> Message:
        """Describe this server."""
        return oip.ServerMetadataResponse(
            name="robustness-firewall", version=__version__, extensions=EXTENSIONS
        )

    def ModelMetadata(self, request: oip.ModelMetadataRequest, _: RequestContext) -> Message:
        """Describe the inputs and outputs of one model."""
        return converters.model_metadata(
            self._plane.describe(request.name, request.version).manifest
        )

    def ModelInfer(self, request: oip.ModelInferRequest, context: RequestContext) -> Message:
        """Screen a batch and answer it."""
        asked = converters.infer_request(request, self._plane.limits)
        return converters.infer_response(self._plane.infer(asked, context))

    def ModelConfig(self, request: oip.ModelConfigRequest, _: RequestContext) -> Message:
        """Describe one model as Triton's configuration does."""
        return converters.model_config(self._plane.describe(request.name, request.version))

    def ModelStatistics(self, request: oip.ModelStatisticsRequest, _: RequestContext) -> Message:
        """Count inferences of one model, or of all."""
        if request.name:
            return converters.model_statistics(
                [self._plane.describe(request.name, request.version)]
            )
        return converters.model_statistics(self._plane.describe_all())

    def RepositoryIndex(self, request: oip.RepositoryIndexRequest, _: RequestContext) -> Message:
        """List the models."""
        listed = self._plane.describe_all()
        return converters.repository_index(
            [one for one in listed if one.ready or not request.ready]
        )


class FirewallService:
    """`firewall.v1.FirewallService`: row by row, with reasons."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def Predict(self, request: native.PredictRequest, context: RequestContext) -> Message:
        """Screen every row and answer those that pass."""
        asked = converters.native_request(request)
        screened = self._plane.predict(asked, request.top_k, context)
        return converters.predict_response(screened, request.top_k or 5, context.request_id)

    def Screen(self, request: native.ScreenRequest, context: RequestContext) -> Message:
        """Screen every row."""
        screened = self._plane.screen(converters.native_request(request), context)
        return converters.screen_response(
            screened, with_pixels=request.pixels, request_id=context.request_id
        )

    def Certify(self, request: native.CertifyRequest, context: RequestContext) -> Message:
        """Certify every row that is not refused."""
        certified, model = self._plane.certify(converters.native_request(request), context)
        return converters.certify_response(certified, model, context.request_id)

    def Describe(self, request: native.DescribeRequest, _: RequestContext) -> Message:
        """Describe what is served, and under which policy."""
        return converters.describe_response(self._plane.live(request.model, request.version))


class GrpcMethods:
    """Makes gRPC handlers of service methods: receive, ask the pipeline, answer."""

    def __init__(
        self,
        pipeline: RequestPipeline,
        receiver: MessageReceiver,
        message_timeout: Callable[[], float],
    ) -> None:
        """Set what all methods share.

        Args:
            pipeline: of the requests.
            receiver: of their messages.
            message_timeout: seconds that a call may take to send its message.

        """
        self._pipeline, self._receiver = pipeline, receiver
        self._message_timeout = message_timeout

    def handler(self, service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        """All methods of a service that the servicer has."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            method.name: self._method(
                service.full_name,
                method.name,
                GetMessageClass(method.input_type),
                getattr(servicer, method.name),
            )
            for method in service.methods
        }
        return grpc.method_handlers_generic_handler(service.full_name, methods)

    def _method(
        self,
        service: str,
        method: str,
        request_class: type[Message],
        run: Callable[[Any, RequestContext], Message],
    ) -> grpc.RpcMethodHandler[Any, Any]:
        def answer(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            request = self._pipeline.begin(_incoming(service, method, context))
            try:
                request.admit()
                # No name for the bytes: they are freed before the message is computed.
                message = parse(
                    self._receiver.receive(messages, context, self._message_timeout), request_class
                )
                request.received()
                response = run(message, request.context).SerializeToString()
            except Exception as error:
                context.abort_with_status(grpc_status(request.fail(error)))
            request.succeed()
            context.set_trailing_metadata(((REQUEST_ID_KEY, request.context.request_id),))
            self._receiver.answered(context)
            return response

        # Bytes in and out: bytes that are no message are INVALID_ARGUMENT, not gRPC's INTERNAL. A
        # stream of one message, so that a call whose message does not come can be ended.
        return grpc.stream_unary_rpc_method_handler(answer)


def _incoming(service: str, method: str, context: grpc.ServicerContext) -> Incoming:
    remaining = context.time_remaining()
    return Incoming(
        "grpc",
        service,
        method,
        peer_address(context.peer()),
        dict(context.invocation_metadata()),
        certificate_name(context.auth_context()),
        None if remaining is None or remaining > _NO_DEADLINE else remaining,
        context.add_callback,
        context.is_active,
    )


def parse(data: bytes, request_class: type[Request]) -> Request:
    """Parse a message.

    Raises:
        InvalidInput: the bytes are no such message, or hold too many fields.

    """
    check_fields(data, cast(Descriptor, request_class.DESCRIPTOR))
    try:
        return request_class.FromString(data)
    except DecodeError as error:
        raise InvalidInput("message", f"is not a {request_class.DESCRIPTOR.full_name}") from error
