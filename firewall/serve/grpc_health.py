"""`grpc.health.v1` and reflection: the stock servicers, with bounds on threads and on waiting.

gRPC's sync server gives every call a thread, and the stock servicers wait in it for as long as the
client likes. Here a call that sends no message is ended, and a client has a fair share of the
places, of which checks, watches and reflection each have their own. Health watches beyond theirs
are answered UNIMPLEMENTED, after which a client takes the server for healthy (gRPC health checking
protocol).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from firewall.errors import Cancelled, FirewallError, Overloaded
from firewall.serve.admission import Admission, AdmissionController
from firewall.serve.auth import peer_address
from firewall.serve.receive import MessageReceiver
from firewall.serve.status import failure
from firewall.wire import firewall_pb2, open_inference_pb2

HEALTH: ServiceDescriptor = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION: ServiceDescriptor = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]

#: Calls of health that wait for their message or are answered, at a time.
SIDE_CALLS = 128
#: Clients that may watch health, and streams of reflection, at a time; each has a thread.
MAX_WATCHES, MAX_REFLECTIONS = 32, 8
#: Seconds in which a health check's message must arrive, and for which a reflection stream may be
#: silent, and may last.
MESSAGE_TIMEOUT, SILENCE_TIMEOUT, REFLECTION_TIMEOUT = 2.0, 30.0, 60.0


class HealthState:
    """What health says, for the whole server and for each service."""

    def __init__(self, services: tuple[str, ...]) -> None:
        """Begin as NOT_SERVING; the stock servicer begins as SERVING."""
        self.servicer = health.HealthServicer()
        self._services = services
        self.set(False)

    def set(self, serving: bool) -> None:
        """Say whether requests are answered."""
        status = health_pb2.HealthCheckResponse
        for name in ("", *self._services):
            self.servicer.set(name, status.SERVING if serving else status.NOT_SERVING)

    def shut_down(self) -> None:
        """Say NOT_SERVING from now on, whatever is set later."""
        self.servicer.enter_graceful_shutdown()


class SideServices:
    """Handlers of health and reflection."""

    def __init__(
        self, state: HealthState, receiver: MessageReceiver, names: tuple[str, ...]
    ) -> None:
        """Make them.

        Args:
            state: of health.
            receiver: of messages.
            names: full names of the services that reflection describes besides these two.

        """
        self._receiver = receiver
        self._calls = AdmissionController(SIDE_CALLS)
        self._watches = AdmissionController(MAX_WATCHES)
        self._reflections = AdmissionController(MAX_REFLECTIONS)
        servicer = reflection.ReflectionServicer(
            (*names, HEALTH.full_name, REFLECTION.full_name), pool=_pool()
        )
        self.handlers = (
            self._handler(HEALTH, state.servicer),
            self._handler(REFLECTION, servicer),
        )

    def _handler(self, service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        methods = {
            method.name: self._method(method, getattr(servicer, method.name))
            for method in service.methods
        }
        return grpc.method_handlers_generic_handler(service.full_name, methods)

    def _method(self, method: Any, run: Any) -> grpc.RpcMethodHandler[Any, Any]:
        request_class = GetMessageClass(method.input_type)
        response_class: Any = GetMessageClass(method.output_type)

        def unary(messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
            with _admitted(self._calls, context) as place:
                message = self._first(messages, context)
                place.received()
                response = run(message, context)
            self._receiver.answered(context)
            return response

        def watch(messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            with _admitted(self._watches, context, grpc.StatusCode.UNIMPLEMENTED) as place:
                message = self._first(messages, context)
                place.received()
                yield from run(message, context)

        def stream(messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            with _admitted(self._reflections, context):
                # A client that takes no answers would keep the thread.
                self._receiver.limit(context, REFLECTION_TIMEOUT)
                yield from run(self._each(messages, context), context)

        if method.client_streaming:
            behaviour, make = stream, grpc.stream_stream_rpc_method_handler
        elif method.server_streaming:
            behaviour, make = watch, grpc.stream_stream_rpc_method_handler
        else:
            return grpc.stream_unary_rpc_method_handler(
                unary, request_class.FromString, response_class.SerializeToString
            )
        return make(behaviour, request_class.FromString, response_class.SerializeToString)

    def _first(self, messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
        try:
            return self._receiver.receive(messages, context, lambda: MESSAGE_TIMEOUT)
        except FirewallError as error:
            failed = failure(error, "")
            context.abort(failed.code, failed.text)

    def _each(self, messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        while True:
            try:
                yield self._receiver.receive(messages, context, lambda: SILENCE_TIMEOUT)
            except (Cancelled, FirewallError):
                # The client has ended its stream, or is gone.
                return


@contextmanager
def _admitted(
    admission: AdmissionController,
    context: grpc.ServicerContext,
    refusal: grpc.StatusCode = grpc.StatusCode.RESOURCE_EXHAUSTED,
) -> Iterator[Admission]:
    """A place for a call, or its end with a refusal."""
    try:
        place = admission.admit(peer_address(context.peer()))
    except Overloaded as error:
        context.abort(refusal, str(error))
    try:
        yield place
    finally:
        place.release()


def _pool() -> DescriptorPool:
    """Descriptors of every service, in a pool of their own as `firewall.wire.pool` explains."""
    pool = DescriptorPool()
    for module in (firewall_pb2, open_inference_pb2, health_pb2, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return pool
