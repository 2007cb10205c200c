"""A client of the Open Inference Protocol: Triton, MLServer, KServe, or this firewall."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
import numpy.typing as npt

from firewall.client.failure import failure
from firewall.errors import InvalidInput, RemoteError
from firewall.wire import open_inference_pb2 as oip

_SERVICE = "/inference.GRPCInferenceService/"
_DTYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
_NAMES = {name: datatype for datatype, name in _DTYPES.items()}
_MAX_MESSAGE = 64 << 20


@dataclass(frozen=True)
class TensorInfo:
    """As a server describes a tensor. A shape's -1 is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class OpenInferenceClient:
    """Blocking client of one model. Thread-safe; close it, or use it as a context manager."""

    def __init__(
        self, address: str, *, model: str, version: str = "", timeout: float = 30.0
    ) -> None:
        """Connect lazily.

        Args:
            address: `host:port`.
            model: name.
            version: empty is the server's choice.
            timeout: seconds for each call.

        """
        options = (
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.max_send_message_length", _MAX_MESSAGE),
        )
        self._channel = grpc.insecure_channel(address, options=options)
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
        return _infos(found.inputs), _infos(found.outputs)

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
        return _outputs(self._unary("ModelInfer", request, oip.ModelInferResponse))

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
            return call(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise failure(error) from error


def _infos(tensors: Any) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(one.name, one.datatype, tuple(one.shape)) for one in tensors)


def _outputs(response: Any) -> dict[str, npt.NDArray[Any]]:
    """Raw or typed contents; a server may send either."""
    found: dict[str, npt.NDArray[Any]] = {}
    for number, tensor in enumerate(response.outputs):
        name = _DTYPES.get(tensor.datatype)
        if name is None:
            # Strings: of no use to whoever asks for numbers.
            continue
        dtype = np.dtype(name)
        if number < len(response.raw_output_contents):
            raw = response.raw_output_contents[number]
            flat = (
                np.frombuffer(raw, dtype.newbyteorder("<"))
                if len(raw) % dtype.itemsize == 0
                else np.empty(0, dtype)
            )
        else:
            [values] = [v for _, v in tensor.contents.ListFields()] or [[]]
            flat = np.asarray(values)
        if flat.size != math.prod(tensor.shape):
            raise RemoteError(
                f"output {tensor.name!r}: {flat.size} values; its shape "
                f"{list(tensor.shape)} has {math.prod(tensor.shape)}",
                "INTERNAL",
            )
        found[tensor.name] = flat.astype(dtype).reshape(tensor.shape)
    return found
