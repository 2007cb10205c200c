"""A served classifier: batches are split, calls retried once, and a dead server asked seldom.

A batch and all its views are as few calls as the limits on rows and bytes allow. A message that the
server finds too large is halved, and the smaller size is kept for later calls.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.errors import (
    ConfigError,
    DeadlineExceeded,
    FirewallError,
    InvalidInput,
    NotReady,
    Overloaded,
    UpstreamError,
)
from firewall.protocol.tensors import TensorInfo
from firewall.screening.classifier import Answers
from firewall.upstream.breaker import Breaker
from firewall.upstream.settings import UpstreamSettings
from firewall.upstream.trace import TRACE_CONTEXT
from firewall.upstream.transport import (
    CallFailed,
    Headers,
    ModelMetadata,
    Rows,
    Transport,
    as_floats,
)

log = logging.getLogger(__name__)

#: Seconds of a deadline that are kept for what comes after the call.
_OWN_SHARE = 0.02
#: Seconds that a readiness probe may take.
_PROBE_TIMEOUT = 2.0
#: Statuses that do not describe the caller's request: the firewall is refused, and not its client.
_REFUSES_US = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})


class Upstream:
    """A served classifier, over gRPC or REST. Thread-safe."""

    def __init__(
        self,
        settings: UpstreamSettings,
        *,
        output: str,
        input_name: str,
        others: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a client; it connects with the first call.

        Args:
            settings: where the classifier is, and the limits of a call.
            output: name of the output that holds the class scores.
            input_name: name of the input that takes the images.
            others: names of further outputs, which pass through.
            clock: seconds, as deadlines count them.

        """
        self._settings, self._output, self._clock = settings, output, clock
        self._others = tuple(others)
        self._transport = _connect(settings, input_name)
        self._breaker = Breaker(settings.address, settings.breaker, settings.pause, clock)
        self._lock = threading.Lock()
        self._max_bytes = settings.max_call_bytes

    def ready(self) -> bool:
        """Whether the server says that the model can be asked; False when it says nothing."""
        try:
            return self._transport.ready(_PROBE_TIMEOUT, self._headers())
        except CallFailed:
            return False

    def metadata(self) -> ModelMetadata:
        """Ask what the model takes and gives.

        Raises:
            FirewallError: the server does not answer.

        """
        try:
            return self._transport.metadata(self._settings.timeout, self._headers())
        except CallFailed as failed:
            raise failed.error from failed

    def infer(self, wire: Rows, deadline: float | None, *, scores_only: bool = False) -> Answers:
        """Ask about rows, in as many calls as the limits make of them.

        Args:
            wire: [R, *input shape], R at least 1.
            deadline: `time.monotonic()` by which the answer is due; None is `settings.timeout`.
            scores_only: whether further outputs are left out.

        Raises:
            FirewallError: the server failed, or answers something else; `NotReady` while the
                breaker is open.

        """
        names = (self._output,) if scores_only else (self._output, *self._others)
        parts: list[dict[str, npt.NDArray[Any]]] = []
        start = 0
        while start < len(wire):
            rows = wire[start : start + self._rows_of_a_call(wire)]
            try:
                parts.append(self._ask(rows, names, deadline))
            except CallFailed as failed:
                if not (failed.too_large and len(rows) > 1):
                    raise _for_client(failed) from failed
                self._halve(rows)
            else:
                start += len(rows)
        found = {name: _joined([part[name] for part in parts]) for name in names}
        return Answers(found.pop(self._output), others=found)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def _rows_of_a_call(self, wire: Rows) -> int:
        fitting = self._max_bytes // self._transport.row_bytes(wire)
        return min(self._settings.batch, max(1, fitting))

    def _halve(self, rows: Rows) -> None:
        """Let later calls carry half of what was too large."""
        with self._lock:
            half = self._transport.row_bytes(rows) * (len(rows) // 2)
            if half < self._max_bytes:
                self._max_bytes = half
                log.warning(
                    "upstream %s refused a call of %d rows as too large; calls carry at most %d "
                    "bytes from now on",
                    self._settings.address, len(rows), half,
                )  # fmt: skip

    def _ask(
        self, rows: Rows, names: Sequence[str], deadline: float | None
    ) -> dict[str, npt.NDArray[Any]]:
        """One call, as the breaker allows."""
        probes = self._breaker.admit()
        begun = self._clock()
        try:
            outputs = self._call(rows, names, deadline)
        except CallFailed as failed:
            # A caller's own short deadline says nothing about the server.
            patient = deadline is None or deadline - begun > self._settings.timeout
            late = failed.status == "DEADLINE_EXCEEDED"
            if failed.status == "UNAVAILABLE" or (late and patient):
                self._breaker.failed(probes)
            elif late:
                self._breaker.released(probes)
            else:
                self._breaker.answered(probes)
            raise
        except BaseException:
            self._breaker.released(probes)
            raise
        self._breaker.succeeded()
        return {name: self._checked(name, outputs, len(rows)) for name in names}

    def _call(
        self, rows: Rows, names: Sequence[str], deadline: float | None
    ) -> dict[str, npt.NDArray[Any]]:
        """One call, and one more where nothing can have been computed."""
        try:
            return self._transport.infer(rows, names, self._left(deadline), self._headers())
        except CallFailed as failed:
            if failed.status != "UNAVAILABLE":
                raise
            # An inference changes nothing, so asking twice is safe. There is no third time: a
            # server that is overloaded must not be asked the more for it.
            return self._transport.infer(rows, names, self._left(deadline), self._headers())

    def _checked(
        self, name: str, outputs: dict[str, npt.NDArray[Any]], rows: int
    ) -> npt.NDArray[Any]:
        """Return an output that has a row for each of the rows asked."""
        found = outputs.get(name)
        if found is None:
            raise UpstreamError(
                f"upstream: answered {', '.join(sorted(outputs)) or 'nothing'}; expected the "
                f"output {name!r}"
            )
        if not found.ndim or len(found) != rows:
            raise UpstreamError(
                f"upstream: answers {list(found.shape)} for {rows} rows; expected [rows, classes]"
            )
        return as_floats(found) if name == self._output else found

    def _left(self, deadline: float | None) -> float:
        """Seconds that a call may take.

        Raises:
            DeadlineExceeded: there is no time left.

        """
        if deadline is None:
            return self._settings.timeout
        left = deadline - self._clock() - _OWN_SHARE
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the classifier could be asked")
        return min(left, self._settings.timeout)

    def _headers(self) -> Headers:
        token = self._settings.token
        if token is None:
            return TRACE_CONTEXT.get()
        return (*TRACE_CONTEXT.get(), ("authorization", f"Bearer {token()}"))


def describe(settings: UpstreamSettings) -> tuple[TensorInfo, TensorInfo, str]:
    """Ask for the only input, the first output, and the platform of a served classifier.

    Raises:
        ConfigError: the server does not answer, or the model has several inputs.

    """
    client = Upstream(settings, input_name="", output="")
    try:
        metadata = client.metadata()
    except FirewallError as error:
        raise ConfigError(
            f"--upstream: {settings.address} does not describe model {settings.model!r}: {error}"
        ) from error
    finally:
        client.close()
    if len(metadata.inputs) != 1 or not metadata.outputs:
        raise ConfigError(
            f"upstream: model {settings.model!r} has {len(metadata.inputs)} inputs and "
            f"{len(metadata.outputs)} outputs; expected one input of images"
        )
    return metadata.inputs[0], metadata.outputs[0], metadata.platform


def _joined(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Join the answers of the calls of one batch."""
    if len({part.shape[1:] for part in parts}) > 1:
        raise UpstreamError("upstream: calls of one batch answer different numbers of classes")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _connect(settings: UpstreamSettings, input_name: str) -> Transport:
    # Imported where it is used: a server whose upstream speaks gRPC does not load an HTTP client.
    if settings.protocol == "rest":
        from firewall.upstream.rest_transport import RestTransport

        return RestTransport(settings, input_name=input_name)
    from firewall.upstream.grpc_transport import GrpcTransport

    return GrpcTransport(settings, input_name=input_name)


def _for_client(failed: CallFailed) -> FirewallError:
    """Decide what our client is told of a failed call.

    What the client did wrong it is told in the server's words. What is wrong with the classifier is
    for the log: `serve.status` shows an `UpstreamError` as its status alone.
    """
    if isinstance(failed.error, (InvalidInput, Overloaded)) and not failed.too_large:
        return failed.error
    if failed.status == "UNAVAILABLE":
        return NotReady("the classifier behind this firewall does not answer")
    if failed.status == "DEADLINE_EXCEEDED":
        return DeadlineExceeded("the classifier behind this firewall did not answer in time")
    # A refusal of the firewall, passed on as it stands, would be taken for our verdict.
    status = "INTERNAL" if failed.status in _REFUSES_US else failed.status
    return UpstreamError(f"upstream: {failed}", status)
