"""A client of the Open Inference Protocol: Triton, MLServer, KServe, or this firewall."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import grpc
import numpy.typing as npt

from firewall.client.security import Tls, bearer, channel
from firewall.errors import InvalidInput
from firewall.protocol.failure import failure
from firewall.protocol.tensors import DATATYPES, TensorInfo, tensor_infos, tensors_of
from firewall.wire import open_inference_pb2 as oip

_SERVICE = "/inference.GRPCInferenceService/"
_NAMES = {name: datatype for datatype, name in DATATYPES.items()}
_MAX_MESSAGE = 64 << 20


class OpenInferenceClient:
    """Blocking client of one model. Thread-safe; close it, or use it as a context manager."""

    def __init__(
        self,
        address: str,
        *,
        model: str,
        version: str = "",
        timeout: float = 30.0,
        tls: Tls | None = None,
        token: str = "",
    ) -> None:
        """Connect lazily.

        Args:
            address: `host:port`.
            model: name.
            version: empty is the server's choice.
            timeout: seconds for each call.
            tls: certificates; None is without TLS.
            token: that names this client to the server.

        """
        options = (
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.max_send_message_length", _MAX_MESSAGE),
        )
        self._channel = channel(address, tls, options)
        self._metadata = bearer(token)
        self._model = model
        self._version = version
        self._timeout = timeout

    def ready(self) -> bool:
        """Whether the model can be asked."""
        request = oip.ModelReadyRequest(name=self._model, version=self._version)
        return bool(self._unary("ModelReady", request, oip.ModelReadyResponse).ready)

    def metadata(self) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
        """Inputs and outputs of the model."""
        request = oip.ModelMetadataRequest(name=self._model, version=self._version)
        found = self._unary("ModelMetadata", request, oip.ModelMetadataResponse)
        return tensor_infos(found.inputs), tensor_infos(found.outputs)

    def infer(self, inputs: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """One inference.

        Args:
            inputs: arrays by name, of a dtype that the protocol knows.

        Returns:
            Every output by name.

        Raises:
            FirewallError: `Refused` where a firewall suspects the input, `InvalidInput`,
                `NotFound`, `NotReady`, ... as the server answered.

        """
        request = oip.ModelInferRequest(model_name=self._model, model_version=self._version)
        for name, array in inputs.items():
            datatype = _NAMES.get(array.dtype.name)
            if datatype is None:
                raise InvalidInput(name, f"dtype {array.dtype.name}; expected {', '.join(_NAMES)}")
            request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            request.raw_input_contents.append(little.tobytes())
        return tensors_of(self._unary("ModelInfer", request, oip.ModelInferResponse))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _unary(self, method: str, request: Any, response: Any) -> Any:
        call = self._channel.unary_unary(
            _SERVICE + method, type(request).SerializeToString, response.FromString
        )
        try:
            return call(request, timeout=self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise failure(error) from error
