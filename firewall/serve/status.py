"""From our errors to gRPC status. The only place where that is decided."""

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
    UpstreamError,
)

log = logging.getLogger(__name__)

#: Domain and reason of a refusal in google.rpc.ErrorInfo.
DOMAIN = "firewall"
SUSPECTED = "ADVERSARIAL_INPUT_SUSPECTED"
REQUEST_ID_KEY = "x-request-id"
DETAILS_KEY = "grpc-status-details-bin"

#: Errors whose text is meant for a remote client. Every other error is internal.
CODES: tuple[tuple[type[FirewallError], grpc.StatusCode], ...] = (
    (InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    # As gRPC's own servers say it.
    (TooLarge, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (Cancelled, grpc.StatusCode.CANCELLED),
    (NotReady, grpc.StatusCode.UNAVAILABLE),
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (Unsupported, grpc.StatusCode.UNIMPLEMENTED),
    (Refused, grpc.StatusCode.PERMISSION_DENIED),
)


@dataclass(frozen=True)
class Status(grpc.Status):
    """What `ServicerContext.abort_with_status` takes."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def to_admin_status(error: Exception, request_id: str) -> Status:
    """As `to_status`, for operators: what is wrong with a bundle or a policy is theirs to know."""
    if isinstance(error, FirewallError) and not isinstance(
        error, (InvalidInput, NotFound, Unauthenticated, Overloaded)
    ):
        return _status(grpc.StatusCode.FAILED_PRECONDITION, str(error), [], request_id)
    return to_status(error, request_id)


def to_status(error: Exception, request_id: str) -> Status:
    """The status of an error, with google.rpc details. Unexpected errors are logged, not told."""
    for kind, code in CODES:
        if isinstance(error, kind):
            return _status(code, str(error), _details(error, request_id), request_id)
    if isinstance(error, UpstreamError):
        log.error("request %s: %s", request_id, error)
        text = f"the classifier behind this firewall failed, request id {request_id}"
        return _status(grpc.StatusCode[error.status], text, [], request_id)
    log.error("request %s failed", request_id, exc_info=error)
    return _status(
        grpc.StatusCode.INTERNAL, f"internal error, request id {request_id}", [], request_id
    )


def _details(error: Exception, request_id: str) -> list[Message]:
    if isinstance(error, Refused):
        return [ErrorInfo(reason=SUSPECTED, domain=DOMAIN, metadata={"request_id": request_id})]
    if isinstance(error, InvalidInput):
        violation = BadRequest.FieldViolation(field=error.field, description=str(error))
        return [BadRequest(field_violations=[violation])]
    if isinstance(error, Overloaded):
        # A floor: some clients take zero for "at once".
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        return [RetryInfo(retry_delay=delay)]
    return []


def _status(code: grpc.StatusCode, text: str, details: list[Message], request_id: str) -> Status:
    message = StatusMessage(code=code.value[0], message=text)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        message.details.append(packed)
    metadata: tuple[tuple[str, str | bytes], ...] = (
        (DETAILS_KEY, message.SerializeToString()),
        (REQUEST_ID_KEY, request_id),
    )
    return Status(code, text, metadata)
