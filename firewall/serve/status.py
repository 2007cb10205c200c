"""Map errors to gRPC status and HTTP status. The only place where that is decided."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status as StatusMessage

from firewall.errors import (
    Cancelled,
    DeadlineExceeded,
    FirewallError,
    InvalidInput,
    NotFound,
    NotReady,
    Overloaded,
    Refused,
    TooLarge,
    Unauthenticated,
    Unsupported,
    UnsupportedMedia,
    UpstreamError,
)

log = logging.getLogger(__name__)

#: Domain and reason of a refusal in google.rpc.ErrorInfo.
DOMAIN = "firewall"
SUSPECTED = "ADVERSARIAL_INPUT_SUSPECTED"
REQUEST_ID_KEY = "x-request-id"
DETAILS_KEY = "grpc-status-details-bin"

#: Errors whose text is meant for a remote client, with both statuses. All others are internal.
STATUSES: tuple[tuple[type[FirewallError], grpc.StatusCode, int], ...] = (
    # Before the class that it is derived from.
    (UnsupportedMedia, grpc.StatusCode.INVALID_ARGUMENT, 415),
    (InvalidInput, grpc.StatusCode.INVALID_ARGUMENT, 400),
    (NotFound, grpc.StatusCode.NOT_FOUND, 404),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
    # gRPC's own servers answer a message over the limit with RESOURCE_EXHAUSTED.
    (TooLarge, grpc.StatusCode.RESOURCE_EXHAUSTED, 413),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED, 504),
    (Cancelled, grpc.StatusCode.CANCELLED, 499),
    (NotReady, grpc.StatusCode.UNAVAILABLE, 503),
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED, 401),
    (Unsupported, grpc.StatusCode.UNIMPLEMENTED, 501),
    (Refused, grpc.StatusCode.PERMISSION_DENIED, 403),
)
#: HTTP status of a status that an upstream classifier gave.
_UPSTREAM_HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


@dataclass(frozen=True)
class Failure:
    """A failed request, as its client is told.

    Attributes:
        code: gRPC status.
        http: HTTP status.
        text: one sentence, without anything internal.
        request_id: of the request.
        reason: `ADVERSARIAL_INPUT_SUSPECTED` of a refusal, else empty.
        field: of the request, that is wrong; else empty.
        retry_after: seconds; None where retrying is not what helps.
        rows: that were refused.

    """

    code: grpc.StatusCode
    http: int
    text: str
    request_id: str
    reason: str = ""
    field: str = ""
    retry_after: float | None = None
    rows: tuple[int, ...] = ()


def failure(error: Exception, request_id: str) -> Failure:
    """Describe an error to a client. Unexpected errors are logged and not described."""
    for kind, code, http in STATUSES:
        if isinstance(error, kind):
            return Failure(
                code,
                http,
                str(error),
                request_id,
                reason=SUSPECTED if isinstance(error, Refused) else "",
                field=error.field if isinstance(error, InvalidInput) else "",
                retry_after=error.retry_after if isinstance(error, Overloaded) else None,
                rows=error.rows if isinstance(error, Refused) else (),
            )
    if isinstance(error, UpstreamError):
        log.error("request %s: %s", request_id, error)
        code = grpc.StatusCode[error.status]
        text = f"the classifier behind this firewall failed, request id {request_id}"
        return Failure(code, _UPSTREAM_HTTP.get(code, 502), text, request_id)
    log.error("request %s failed", request_id, exc_info=error)
    text = f"internal error, request id {request_id}"
    return Failure(grpc.StatusCode.INTERNAL, 500, text, request_id)


def admin_failure(error: Exception, request_id: str) -> Failure:
    """Describe an error to an operator, who may know what is wrong with a bundle or a policy."""
    if isinstance(error, FirewallError) and not isinstance(
        error, (InvalidInput, NotFound, Unauthenticated, Overloaded)
    ):
        return Failure(grpc.StatusCode.FAILED_PRECONDITION, 409, str(error), request_id)
    return failure(error, request_id)


@dataclass(frozen=True)
class GrpcStatus(grpc.Status):
    """What `ServicerContext.abort_with_status` takes."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def grpc_status(failed: Failure) -> GrpcStatus:
    """A failure as gRPC status with google.rpc details."""
    message = StatusMessage(code=failed.code.value[0], message=failed.text)
    for detail in _details(failed):
        packed = AnyMessage()
        packed.Pack(detail)
        message.details.append(packed)
    metadata: tuple[tuple[str, str | bytes], ...] = (
        (DETAILS_KEY, message.SerializeToString()),
        (REQUEST_ID_KEY, failed.request_id),
    )
    return GrpcStatus(failed.code, failed.text, metadata)


def _details(failed: Failure) -> list[Message]:
    if failed.reason:
        metadata = {"request_id": failed.request_id}
        return [ErrorInfo(reason=failed.reason, domain=DOMAIN, metadata=metadata)]
    if failed.field:
        violation = BadRequest.FieldViolation(field=failed.field, description=failed.text)
        return [BadRequest(field_violations=[violation])]
    if failed.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(int(failed.retry_after * 1e9))
        return [RetryInfo(retry_delay=delay)]
    return []
