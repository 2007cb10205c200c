"""The classifier behind the guard, over the Open Inference Protocol.

One call has a batch and all its views. Calls that never reached a server are tried once more; when
several in a row fail, a breaker opens: requests are refused at once instead of each waiting for its
own timeout, and one at a time tries whether the server is back.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from firewall.errors import (
    ConfigError,
    DeadlineExceeded,
    FirewallError,
    NotReady,
    Refused,
    RemoteError,
    UpstreamError,
)
from firewall.protocol.failure import failure
from firewall.protocol.tensors import TensorInfo, tensor_infos, tensors_of
from firewall.serve.call import TRACE_CONTEXT
from firewall.wire import open_inference_pb2 as oip

log = logging.getLogger(__name__)

_URL = re.compile(
    r"^(?P<scheme>grpcs?)://(?P<address>[^/\s]+:\d{1,5})/(?P<model>[^/\s]+)(/(?P<version>[^/\s]+))?$"
)
_SERVICE = "/inference.GRPCInferenceService/"
_DATATYPES = {"uint8": "UINT8", "float16": "FP16", "float32": "FP32"}
#: Seconds that are kept of a deadline for what comes after the call.
_OWN_SHARE = 0.02


@dataclass(frozen=True)
class UpstreamSettings:
    """Where it is, and how patient we are.

    Attributes:
        address: `host:port`.
        model: name.
        version: empty is the server's choice.
        tls: certificate authorities in PEM; None is plain text, empty the system's.
        timeout: seconds of a call without a deadline.
        batch: rows of one call at most; more are several calls.
        breaker: failures in a row after which requests are refused at once.
        pause: seconds until one tries again.
        max_message: bytes.

    """

    address: str
    model: str
    version: str = ""
    tls: bytes | None = None
    timeout: float = 30.0
    batch: int = 256
    breaker: int = 5
    pause: float = 1.0
    max_message: int = 64 << 20

    @classmethod
    def parse(cls, url: str, **others: Any) -> UpstreamSettings:
        """`grpc://host:port/model[/version]`; `grpcs://` with TLS.

        Raises:
            ConfigError: it is something else.

        """
        found = _URL.match(url)
        if found is None:
            raise ConfigError(
                f"--upstream: {url!r}; expected grpc://host:port/model or "
                "grpc://host:port/model/version (grpcs:// with TLS)"
            )
        if found["scheme"] == "grpcs":
            others.setdefault("tls", b"")
        return cls(found["address"], found["model"], found["version"] or "", **others)


class Upstream:
    """A served classifier. Thread-safe."""

    def __init__(
        self,
        settings: UpstreamSettings,
        *,
        output: str,
        input_name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connect lazily.

        Args:
            settings: where.
            output: name of the output that is asked for.
            input_name: of the input.
            clock: seconds.

        """
        options = (
            ("grpc.max_receive_message_length", settings.max_message),
            ("grpc.max_send_message_length", settings.max_message),
            ("grpc.keepalive_time_ms", 30_000),
            # A server that comes back is found within a second.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        )
        self._channel = (
            grpc.insecure_channel(settings.address, options=options)
            if settings.tls is None
            else grpc.secure_channel(
                settings.address, grpc.ssl_channel_credentials(settings.tls or None), options
            )
        )
        self._settings, self._output, self._input = settings, output, input_name
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._closed_until = 0.0
        self._probing = False

    def ready(self) -> bool:
        """Whether the upstream says that the model can be asked; False when it says nothing."""
        request = oip.ModelReadyRequest(name=self._settings.model, version=self._settings.version)
        try:
            return bool(self._unary("ModelReady", request, oip.ModelReadyResponse, 2.0).ready)
        except grpc.RpcError:
            return False

    def metadata(self) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...], str]:
        """Inputs, outputs and platform as the upstream describes them.

        Raises:
            FirewallError: it does not answer.

        """
        request = oip.ModelMetadataRequest(
            name=self._settings.model, version=self._settings.version
        )
        try:
            found = self._unary(
                "ModelMetadata", request, oip.ModelMetadataResponse, self._settings.timeout
            )
        except grpc.RpcError as error:
            raise failure(error) from error
        return tensor_infos(found.inputs), tensor_infos(found.outputs), str(found.platform)

    def infer(self, wire: npt.NDArray[Any], deadline: float | None) -> npt.NDArray[np.float32]:
        """[R, *shape] to [R, K], in as many calls as `batch` makes of them.

        Raises:
            FirewallError: as the upstream answered; `NotReady` while the breaker is open.

        """
        size = self._settings.batch
        parts = [self._one(wire[n : n + size], deadline) for n in range(0, len(wire), size)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _one(self, wire: npt.NDArray[Any], deadline: float | None) -> npt.NDArray[np.float32]:
        request = oip.ModelInferRequest(
            model_name=self._settings.model, model_version=self._settings.version
        )
        request.inputs.add(name=self._input, datatype=_DATATYPES[wire.dtype.name], shape=wire.shape)
        request.outputs.add(name=self._output)
        little = wire.astype(wire.dtype.newbyteorder("<"), copy=False)
        request.raw_input_contents.append(little.tobytes())
        probes = self._admit()
        begun = self._clock()
        try:
            answer = self._call(request, deadline)
        except grpc.RpcError as error:
            # A caller's own short deadline says nothing about the server.
            patient = deadline is None or deadline - begun > self._settings.timeout
            self._judge(error, probes, patient)
            raise _told(error) from error
        except BaseException:
            self._release(probes)
            raise
        self._succeeded()
        found = tensors_of(answer)
        if self._output not in found:
            raise UpstreamError(
                f"upstream: answered {', '.join(sorted(found)) or 'nothing'}; expected the output "
                f"{self._output!r}"
            )
        return found[self._output].astype(np.float32, copy=False)

    def _call(self, request: oip.ModelInferRequest, deadline: float | None) -> Any:
        """Once, and once more where nothing can have been computed."""
        try:
            return self._unary("ModelInfer", request, oip.ModelInferResponse, self._left(deadline))
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            # An inference changes nothing: to ask twice is safe. Not a third time: whoever is
            # overloaded must not be asked the more for it.
            return self._unary("ModelInfer", request, oip.ModelInferResponse, self._left(deadline))

    def _left(self, deadline: float | None) -> float:
        if deadline is None:
            return self._settings.timeout
        left = deadline - self._clock() - _OWN_SHARE
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the classifier could be asked")
        return min(left, self._settings.timeout)

    def _unary(self, method: str, request: Any, response: Any, timeout: float) -> Any:
        call = self._channel.unary_unary(
            _SERVICE + method, type(request).SerializeToString, response.FromString
        )
        return call(request, timeout=timeout, metadata=TRACE_CONTEXT.get())

    def _admit(self) -> bool:
        """Whether this call is the one that tries.

        Raises:
            NotReady: the breaker is open.

        """
        with self._lock:
            if self._failures < self._settings.breaker:
                return False
            if self._probing or self._clock() < self._closed_until:
                raise NotReady("the classifier behind this firewall does not answer")
            self._probing = True
            return True

    def _succeeded(self) -> None:
        with self._lock:
            if self._failures >= self._settings.breaker:
                log.warning("upstream %s answers again", self._settings.address)
            self._failures, self._probing = 0, False

    def _judge(self, error: grpc.RpcError, probes: bool, patient: bool) -> None:
        """Count what says that the server is gone, and nothing else."""
        late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        with self._lock:
            if error.code() is grpc.StatusCode.UNAVAILABLE or (late and patient):
                self._failures += 1
                if self._failures >= self._settings.breaker:
                    self._closed_until = self._clock() + self._settings.pause
                    if self._failures == self._settings.breaker:
                        log.warning("upstream %s does not answer", self._settings.address)
            elif not late:
                self._failures = 0
            if probes:
                self._probing = False

    def _release(self, probes: bool) -> None:
        if probes:
            with self._lock:
                self._probing = False


def _told(error: grpc.RpcError) -> Exception:
    """The upstream's status, as our clients get it.

    What they did wrong they are told as it was said; what is wrong with the classifier is not
    theirs to read.
    """
    found = failure(error)
    code = error.code()
    if isinstance(found, NotReady):
        return NotReady("the classifier behind this firewall does not answer")
    if isinstance(found, Refused) or code is grpc.StatusCode.UNAUTHENTICATED:
        # It refuses us and not them; as it stands, they would take it for our verdict.
        return UpstreamError(f"upstream: {code.name}: {error.details()}")
    if isinstance(found, RemoteError):
        return UpstreamError(f"upstream: {code.name}: {error.details()}", code.name)
    return found


def describe(settings: UpstreamSettings) -> tuple[TensorInfo, TensorInfo, str]:
    """The one input, the first output, and the platform of a served classifier.

    Raises:
        ConfigError: it does not answer, or has several inputs.

    """
    asked = Upstream(settings, input_name="", output="")
    try:
        inputs, outputs, platform = asked.metadata()
    except FirewallError as error:
        raise ConfigError(
            f"--upstream: {settings.address} does not describe model {settings.model!r}: {error}"
        ) from error
    finally:
        asked.close()
    if len(inputs) != 1 or not outputs:
        raise ConfigError(
            f"upstream: model {settings.model!r} has {len(inputs)} inputs and {len(outputs)} "
            "outputs; expected one input of images"
        )
    return inputs[0], outputs[0], platform
