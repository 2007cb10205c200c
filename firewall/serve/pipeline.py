"""The path that every request takes, over any protocol.

begin (request id, trace) → admit (drain check, authentication, limits) → the operation → end
(status, metrics, trace). A transport calls these steps in order and converts the outcome:

    request = pipeline.begin(incoming)
    try:
        request.admit()
        message = receive()
        request.received()
        answer = operation(message, request.context)
        request.succeed()
    except Exception as error:
        answer = request.fail(error)

Admission needs headers alone, so a request that is refused never occupies a message buffer.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from firewall.errors import InvalidInput, NotReady
from firewall.serve.admission import Admission, AdmissionController
from firewall.serve.context import RequestContext, RequestIds
from firewall.serve.metrics import Metrics
from firewall.serve.status import REQUEST_ID_KEY, Failure, failure
from firewall.serve.tracing import Trace, Tracer

_FORBIDDEN = re.compile("[\r\n\0]")


def _never_cancelled(callback: Callable[[], None]) -> bool:
    """Register nothing, for callers that cannot go away."""
    return True


class ClientNames(Protocol):
    """Names the client of a request, or refuses it."""

    def client(
        self, address: str, headers: Mapping[str, str | bytes], certificate: str | None
    ) -> str:
        """Name of the client; raises `Unauthenticated` when it may not ask."""
        ...


@dataclass(slots=True)
class Incoming:
    """A request before its message has been read.

    Attributes:
        protocol: `grpc` or `http`.
        service: gRPC service, or the API's name over HTTP.
        method: gRPC method, or the HTTP route.
        address: of the client, without port.
        headers: by lower-case name.
        certificate: name in the client's verified certificate, if it showed one.
        timeout: seconds until the client's deadline; None means no deadline.
        on_cancel: as in `RequestContext`.
        is_active: as in `RequestContext`.

    """

    protocol: str
    service: str
    method: str
    address: str
    headers: Mapping[str, str | bytes]
    certificate: str | None = None
    timeout: float | None = None
    on_cancel: Callable[[Callable[[], None]], bool] = _never_cancelled
    is_active: Callable[[], bool] = lambda: True


class OpenRequest:
    """One request on its way; exactly one of `succeed` and `fail` ends it."""

    __slots__ = ("_admission", "_incoming", "_pipeline", "_start", "_trace", "context")

    def __init__(self, pipeline: RequestPipeline, incoming: Incoming) -> None:
        self._pipeline, self._incoming = pipeline, incoming
        self._start = time.perf_counter()
        self._admission: Admission | None = None
        self._trace: Trace | None = None
        deadline = None if incoming.timeout is None else time.monotonic() + incoming.timeout
        self.context = RequestContext(
            pipeline.request_ids.new(), "unknown", deadline, incoming.on_cancel, incoming.is_active
        )
        pipeline.metrics.started(incoming.protocol, incoming.service, incoming.method)

    def admit(self) -> None:
        """Decide from headers alone whether the request may go on.

        Raises:
            FirewallError: malformed headers, an unknown client, too many requests, or a server
                that is shutting down.

        """
        incoming, pipeline, context = self._incoming, self._pipeline, self.context
        headers = incoming.headers
        pipeline.admission.note_arrival()
        if pipeline.tracer is not None:
            self._trace = pipeline.tracer.begin(incoming.service, incoming.method, headers)
            context.trace = self._trace.context
        check_headers(headers)
        if REQUEST_ID_KEY in headers:
            request_id = headers[REQUEST_ID_KEY]
            if not isinstance(request_id, str):
                raise InvalidInput(REQUEST_ID_KEY, "expected text")
            context.set_request_id(REQUEST_ID_KEY, request_id)
        context.client = pipeline.authenticator.client(
            incoming.address, headers, incoming.certificate
        )
        if pipeline.is_draining():
            raise NotReady("the server is shutting down")
        self._admission = pipeline.admission.admit(context.client)
        context.charge = self._admission.charge

    def received(self) -> None:
        """Note that the message has arrived whole."""
        if self._admission is not None:
            self._admission.received()

    def succeed(self) -> None:
        """End the request with an answer."""
        self._end("OK", 200)

    def fail(self, error: Exception) -> Failure:
        """End the request with an error; returns what its client is told."""
        failed = self._pipeline.describe(error, self.context.request_id)
        self._end(failed.code.name, failed.http)
        return failed

    def _end(self, code: str, http: int) -> None:
        if self._admission is not None:
            self._admission.release()
        incoming = self._incoming
        self._pipeline.metrics.handled(
            incoming.protocol,
            incoming.service,
            incoming.method,
            code if incoming.protocol == "grpc" else str(http),
            time.perf_counter() - self._start,
        )
        if self._trace is not None:
            self._trace.end(self.context, code)


@dataclass(frozen=True)
class RequestPipeline:
    """What all requests share.

    Attributes:
        authenticator: names the client of a request.
        admission: limits requests in progress.
        metrics: of requests.
        is_draining: whether the server is shutting down.
        request_ids: for requests that bring none.
        tracer: of requests, if traces are sent.
        describe: turns an error into what the client is told.

    """

    authenticator: ClientNames
    admission: AdmissionController
    metrics: Metrics
    is_draining: Callable[[], bool]
    request_ids: RequestIds
    tracer: Tracer | None = None
    describe: Callable[[Exception, str], Failure] = failure

    def begin(self, incoming: Incoming) -> OpenRequest:
        """Take a request in. Nothing about it has been checked yet."""
        return OpenRequest(self, incoming)


def check_headers(headers: Mapping[str, str | bytes]) -> None:
    """Refuse text values with control characters that end a line or a string elsewhere.

    Raises:
        InvalidInput: a value holds CR, LF or NUL.

    """
    for name, value in headers.items():
        if isinstance(value, str) and _FORBIDDEN.search(value):
            raise InvalidInput(
                f"metadata[{name[:64]!r}]", "holds CR, LF or NUL; expected one line of text"
            )
