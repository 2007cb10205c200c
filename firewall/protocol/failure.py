"""What a server meant by an error: status and google.rpc details, as our own exceptions."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.message import DecodeError
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
    RemoteError,
    Unauthenticated,
    Unsupported,
)


def failure(error: grpc.RpcError) -> FirewallError:
    """What the server meant, from status and google.rpc details."""
    code, text = error.code(), error.details() or ""
    details = _details(error)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        bad = details.get("google.rpc.BadRequest")
        named = bad.field_violations[0].field if bad and bad.field_violations else ""
        field_name = named or text.partition(": ")[0]
        return InvalidInput(field_name, text.removeprefix(f"{field_name}: "))
    if code is grpc.StatusCode.PERMISSION_DENIED:
        info = details.get("google.rpc.ErrorInfo")
        return Refused(text, info.metadata.get("request_id", "") if info else "")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" not in text:
        retry = details.get("google.rpc.RetryInfo")
        return Overloaded(text, retry.retry_delay.ToNanoseconds() / 1e9 if retry else 1.0)
    simple: dict[grpc.StatusCode, type[FirewallError]] = {
        grpc.StatusCode.CANCELLED: Cancelled,
        grpc.StatusCode.NOT_FOUND: NotFound,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
        grpc.StatusCode.UNAVAILABLE: NotReady,
        grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
        grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    }
    if code in simple:
        return simple[code](text)
    return RemoteError(text, code.name)


def _details(error: grpc.RpcError) -> dict[str, Any]:
    from google.rpc import error_details_pb2

    found: dict[str, Any] = {}
    metadata: Any = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            try:
                status = StatusMessage.FromString(value)
            except DecodeError:
                # Some proxy's; the status code still says enough.
                continue
            for packed in status.details:
                name = packed.type_url.rpartition("/")[2]
                kind = getattr(error_details_pb2, name.rpartition(".")[2], None)
                if kind is not None and name.startswith("google.rpc."):
                    found[name] = kind.FromString(packed.value)
    return found
