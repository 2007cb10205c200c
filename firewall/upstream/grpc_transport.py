"""Calls of a served classifier over gRPC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import numpy.typing as npt

from firewall.errors import RemoteError, UpstreamError
from firewall.protocol.addresses import proxy_options
from firewall.protocol.failure import failure
from firewall.protocol.tensors import tensor_infos, tensors_of
from firewall.upstream.settings import UpstreamSettings
from firewall.upstream.transport import (
    DATATYPES,
    CallFailed,
    Headers,
    ModelMetadata,
    Rows,
    little_endian,
    says_too_large,
)
from firewall.wire import open_inference_pb2 as oip

_SERVICE = "/inference.GRPCInferenceService/"


class GrpcTransport:
    """A channel to a server. Thread-safe."""

    def __init__(self, settings: UpstreamSettings, *, input_name: str) -> None:
        """Make a channel; it connects with the first call."""
        self._settings, self._input = settings, input_name
        options = (
            ("grpc.max_receive_message_length", settings.max_message),
            # A single row may be longer than a call is meant to be.
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", 30_000),
            # A server that comes back is noticed within a second.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            *proxy_options(settings.address),
        )
        self._channel = (
            grpc.insecure_channel(settings.address, options=options)
            if settings.tls is None
            else grpc.secure_channel(
                settings.address, grpc.ssl_channel_credentials(settings.tls or None), options
            )
        )

    def row_bytes(self, rows: Rows) -> int:
        """Bytes of a row: the tensor is raw in the message."""
        return int(rows[:1].nbytes)

    def infer(
        self, rows: Rows, outputs: Sequence[str], timeout: float, headers: Headers
    ) -> dict[str, npt.NDArray[Any]]:
        """ModelInfer."""
        request = oip.ModelInferRequest(
            model_name=self._settings.model, model_version=self._settings.version
        )
        request.inputs.add(name=self._input, datatype=DATATYPES[rows.dtype.name], shape=rows.shape)
        for output in outputs:
            request.outputs.add(name=output)
        request.raw_input_contents.append(little_endian(rows))
        answer = self._unary("ModelInfer", request, oip.ModelInferResponse, timeout, headers)
        try:
            return tensors_of(answer)
        except RemoteError as error:
            raise CallFailed("INTERNAL", error) from error
        except (ValueError, TypeError, OverflowError) as error:
            malformed = UpstreamError("the answer holds a malformed tensor")
            raise CallFailed("INTERNAL", malformed) from error

    def ready(self, timeout: float, headers: Headers) -> bool:
        """ModelReady."""
        request = oip.ModelReadyRequest(name=self._settings.model, version=self._settings.version)
        answer = self._unary("ModelReady", request, oip.ModelReadyResponse, timeout, headers)
        return bool(answer.ready)

    def metadata(self, timeout: float, headers: Headers) -> ModelMetadata:
        """ModelMetadata."""
        request = oip.ModelMetadataRequest(
            name=self._settings.model, version=self._settings.version
        )
        found = self._unary("ModelMetadata", request, oip.ModelMetadataResponse, timeout, headers)
        return ModelMetadata(
            tensor_infos(found.inputs), tensor_infos(found.outputs), str(found.platform)
        )

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _unary(
        self, method: str, request: Any, response: Any, timeout: float, headers: Headers
    ) -> Any:
        call = self._channel.unary_unary(
            _SERVICE + method, type(request).SerializeToString, response.FromString
        )
        try:
            return call(request, timeout=timeout, metadata=headers)
        except grpc.RpcError as error:
            status = error.code().name
            raise CallFailed(
                status,
                failure(error),
                too_large=status == "RESOURCE_EXHAUSTED" and says_too_large(error.details() or ""),
            ) from error
