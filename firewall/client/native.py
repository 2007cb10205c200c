"""The client of `firewall.v1.FirewallService`, sync and asyncio.

Building requests and reading answers is shared; the two classes differ in how they wait.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
import numpy.typing as npt

from firewall.client.security import Tls, bearer, channel
from firewall.errors import InvalidInput
from firewall.protocol.addresses import check_address, proxy_options
from firewall.protocol.failure import failure
from firewall.screening.verdict import Verdict
from firewall.wire import firewall_pb2 as native

#: A path or the bytes of a JPEG or PNG.
Image = str | os.PathLike[str] | bytes

_SERVICE = "/firewall.v1.FirewallService/"
_DATATYPES = {"uint8": "UINT8", "float16": "FP16", "float32": "FP32"}
_MAX_MESSAGE = 64 << 20
_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.max_send_message_length", _MAX_MESSAGE),
)


@dataclass(frozen=True)
class Label:
    """One class: index, name and probability in [0, 1]."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """About one row.

    Attributes:
        verdict: `Verdict.REJECT` rows carry no labels.
        reasons: detectors that spoke against the row, the strongest first.
        labels: the most probable first.
        p_value: conformal, only when the server discloses diagnostics.
        statistics: by detector, only when the server discloses diagnostics.

    """

    verdict: Verdict
    reasons: tuple[str, ...] = ()
    labels: tuple[Label, ...] = ()
    p_value: float | None = None
    statistics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Certificate:
    """What holds about a row: no input within the radius has another class.

    Attributes:
        label: the class.
        norm: `linf` or `l2`.
        radius: where values lie in [0, 1]; 0 where nothing is certified.
        confidence: 1 for a deterministic certificate, else the probability that it holds.

    """

    label: int
    norm: str
    radius: float
    confidence: float


@dataclass(frozen=True)
class Certified:
    """The certificates of a row, of the kinds that the bundle issues; none of a refused row.

    Attributes:
        bounded: by interval bounds, deterministic, about the classifier's own class.
        smoothed: by randomised smoothing, about the class of most noisy copies.

    """

    bounded: Certificate | None
    smoothed: Certificate | None


class Client:
    """Blocking client. Thread-safe; close it, or use it as a context manager."""

    def __init__(
        self,
        address: str,
        *,
        model: str = "",
        timeout: float = 30.0,
        wait: bool = False,
        tls: Tls | None = None,
        token: str = "",
    ) -> None:
        """Connect lazily.

        Args:
            address: `host:port`.
            model: name; empty is the only model served.
            timeout: seconds for each call.
            wait: wait for the server to come up, within the timeout, instead of failing at once.
            tls: certificates; None is without TLS.
            token: that names this client to the server.

        Raises:
            ConfigError: the address is not `host:port`.

        """
        self._channel = channel(address, tls, _OPTIONS)
        self._metadata = bearer(token)
        self._model = model
        self._timeout = timeout
        self._wait = wait

    def predict(
        self,
        images: Sequence[Image] | npt.NDArray[Any],
        *,
        top_k: int = 0,
        request_id: str = "",
    ) -> list[Prediction]:
        """Screen and classify; one prediction a row.

        Args:
            images: paths or bytes of JPEG or PNG files, or a batch as the model's input takes it.
            top_k: labels a row; 0 is the server's default of 5.
            request_id: yours, for the server's audit log.

        Raises:
            FirewallError: `InvalidInput`, `Overloaded`, `NotReady`, ... as the server answered.

        """
        request = _predict_request(self._model, images, top_k, request_id)
        return _predictions(self._unary("Predict", request, native.PredictResponse))

    def screen(
        self, images: Sequence[Image] | npt.NDArray[Any], *, request_id: str = ""
    ) -> list[Prediction]:
        """Verdicts without labels; one a row. Arguments and errors as in `predict`."""
        request = native.ScreenRequest(
            model=self._model, request_id=request_id, input=_input(images)
        )
        return _screened(self._unary("Screen", request, native.ScreenResponse))

    def certify(
        self, images: Sequence[Image] | npt.NDArray[Any], *, request_id: str = ""
    ) -> list[Certified]:
        """How far each row may be moved without another class. Arguments as in `predict`.

        Raises:
            Unsupported: the bundle issues no certificates; and as `predict`.

        """
        request = native.CertifyRequest(
            model=self._model, request_id=request_id, input=_input(images)
        )
        return _certified(self._unary("Certify", request, native.CertifyResponse))

    def describe(self) -> native.DescribeResponse:
        """What is served, and under which policy."""
        request = native.DescribeRequest(model=self._model)
        response: native.DescribeResponse = self._unary(
            "Describe", request, native.DescribeResponse
        )
        return response

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
            return call(
                request,
                timeout=self._timeout,
                wait_for_ready=self._wait,
                metadata=self._metadata,
            )
        except grpc.RpcError as error:
            raise failure(error) from error


class AsyncClient:
    """Client for asyncio; otherwise as `Client`."""

    def __init__(
        self,
        address: str,
        *,
        model: str = "",
        timeout: float = 30.0,
        wait: bool = False,
        tls: Tls | None = None,
        token: str = "",
    ) -> None:
        options = (*_OPTIONS, *proxy_options(check_address(address)))
        self._channel = (
            grpc.aio.insecure_channel(address, options=options)
            if tls is None
            else grpc.aio.secure_channel(address, tls.credentials(), options=options)
        )
        self._metadata = bearer(token)
        self._model = model
        self._timeout = timeout
        self._wait = wait

    async def predict(
        self,
        images: Sequence[Image] | npt.NDArray[Any],
        *,
        top_k: int = 0,
        request_id: str = "",
    ) -> list[Prediction]:
        """As `Client.predict`."""
        request = _predict_request(self._model, images, top_k, request_id)
        return _predictions(await self._unary("Predict", request, native.PredictResponse))

    async def screen(
        self, images: Sequence[Image] | npt.NDArray[Any], *, request_id: str = ""
    ) -> list[Prediction]:
        """As `Client.screen`."""
        request = native.ScreenRequest(
            model=self._model, request_id=request_id, input=_input(images)
        )
        return _screened(await self._unary("Screen", request, native.ScreenResponse))

    async def certify(
        self, images: Sequence[Image] | npt.NDArray[Any], *, request_id: str = ""
    ) -> list[Certified]:
        """As `Client.certify`."""
        request = native.CertifyRequest(
            model=self._model, request_id=request_id, input=_input(images)
        )
        return _certified(await self._unary("Certify", request, native.CertifyResponse))

    async def describe(self) -> native.DescribeResponse:
        """As `Client.describe`."""
        request = native.DescribeRequest(model=self._model)
        response: native.DescribeResponse = await self._unary(
            "Describe", request, native.DescribeResponse
        )
        return response

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _unary(self, method: str, request: Any, response: Any) -> Any:
        call = self._channel.unary_unary(
            _SERVICE + method, type(request).SerializeToString, response.FromString
        )
        try:
            return await call(
                request,
                timeout=self._timeout,
                wait_for_ready=self._wait,
                metadata=self._metadata,
            )
        except grpc.RpcError as error:
            raise failure(error) from error


def _predict_request(
    model: str, images: Sequence[Image] | npt.NDArray[Any], top_k: int, request_id: str
) -> native.PredictRequest:
    return native.PredictRequest(
        model=model, request_id=request_id, input=_input(images), top_k=top_k
    )


def _input(images: Sequence[Image] | npt.NDArray[Any]) -> native.Input:
    if isinstance(images, np.ndarray):
        datatype = _DATATYPES.get(images.dtype.name)
        if datatype is None:
            raise InvalidInput(
                "images", f"dtype {images.dtype.name}; expected {', '.join(_DATATYPES)}"
            )
        little = images.astype(images.dtype.newbyteorder("<"), copy=False)
        return native.Input(
            tensor=native.Tensor(datatype=datatype, shape=images.shape, data=little.tobytes())
        )
    if isinstance(images, (str, bytes, os.PathLike)):
        raise InvalidInput("images", "one image; expected a list of images or an array")
    encoded: list[bytes] = []
    for image in images:
        if isinstance(image, bytes):
            encoded.append(image)
            continue
        try:
            encoded.append(Path(image).read_bytes())
        except OSError as error:
            raise InvalidInput("images", f"{image}: {error.strerror}") from error
    return native.Input(images=native.Images(encoded=encoded))


def _decided(decision: native.Decision, labels: Sequence[native.Label] = ()) -> Prediction:
    diagnostics = decision.diagnostics if decision.HasField("diagnostics") else None
    return Prediction(
        verdict=Verdict[native.Verdict.Name(decision.verdict)],
        reasons=tuple(decision.reasons),
        labels=tuple(Label(label.index, label.name, label.probability) for label in labels),
        p_value=diagnostics.p_value if diagnostics else None,
        statistics=dict(diagnostics.statistics) if diagnostics else {},
    )


def _predictions(response: native.PredictResponse) -> list[Prediction]:
    return [_decided(one.decision, one.labels) for one in response.predictions]


def _screened(response: native.ScreenResponse) -> list[Prediction]:
    return [_decided(decision) for decision in response.decisions]


def _certified(response: native.CertifyResponse) -> list[Certified]:
    kinds = [
        [
            # An empty one is of a refused row.
            Certificate(one.label, one.norm, one.radius, one.confidence) if one.norm else None
            for one in kind
        ]
        for kind in (response.certificates, response.smoothed)
    ]
    return [Certified(*row) for row in zip_longest(*kinds)]
