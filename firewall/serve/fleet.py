"""`firewall.v1.AdminService` over several workers: a change is made by all of them or by none."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from firewall.errors import ConfigError, FirewallError, InvalidInput, NotFound, NotReady
from firewall.serve.call import Call
from firewall.serve.supervisor import Worker
from firewall.wire import admin_pb2 as wire

log = logging.getLogger(__name__)

#: Names the operator to a worker, which believes it because nobody else knows its port's secret.
OPERATOR_KEY = "x-firewall-operator"
_SERVICE = "/firewall.v1.AdminService/"
_TIMEOUT = 600.0


class FleetAdminService:
    """Asks the first worker, then the others; remembers, for those that come later."""

    def __init__(self, workers: Callable[[], list[Worker]], secret: str) -> None:
        """Nothing is asked yet.

        Args:
            workers: those that are ready.
            secret: which workers believe.

        """
        self._workers, self._secret = workers, secret
        self._lock = threading.Lock()
        self._made: list[tuple[str, Message]] = []

    def Status(self, request: wire.StatusRequest, call: Call) -> Message:  # noqa: N802
        """Of the first worker, with the shadows' counts of all."""
        answers = [
            self._ask(worker, "Status", request, wire.StatusResponse, call.client)
            for worker in self._ready()
        ]
        first: wire.StatusResponse = answers[0]
        for other in answers[1:]:
            for mine, its in zip(first.models, other.models, strict=True):
                mine.ready = mine.ready and its.ready
                if mine.HasField("shadow") and its.HasField("shadow"):
                    for field in _COUNTS:
                        total = getattr(mine.shadow, field) + getattr(its.shadow, field)
                        setattr(mine.shadow, field, total)
        return first

    def Reload(self, request: wire.ReloadRequest, call: Call) -> Message:  # noqa: N802
        """Every worker serves the bundle that lies there now."""
        return self._all("Reload", request, call)

    def Rollback(self, request: wire.RollbackRequest, call: Call) -> Message:  # noqa: N802
        """Every worker undoes its last change."""
        return self._all("Rollback", request, call)

    def SetPolicy(self, request: wire.SetPolicyRequest, call: Call) -> Message:  # noqa: N802
        """Every worker decides by another policy."""
        return self._all("SetPolicy", request, call)

    def StartShadow(self, request: wire.StartShadowRequest, call: Call) -> Message:  # noqa: N802
        """Every worker compares a candidate."""
        return self._all("StartShadow", request, call)

    def PromoteShadow(  # noqa: N802
        self, request: wire.PromoteShadowRequest, call: Call
    ) -> Message:
        """Every worker serves the candidate."""
        return self._all("PromoteShadow", request, call)

    def DropShadow(self, request: wire.DropShadowRequest, call: Call) -> Message:  # noqa: N802
        """Every worker compares no more."""
        return self._all("DropShadow", request, call)

    def join(self, worker: Worker) -> None:
        """Bring a new worker to where the others are.

        Raises:
            FirewallError: it cannot follow them.

        """
        with self._lock:
            for method, request in self._made:
                self._ask(worker, method, request, wire.ModelStatus, "supervisor")

    def refreshed(self) -> None:
        """Files were read again: policies that were set by hand are over."""
        with self._lock:
            self._made = [one for one in self._made if one[0] != "SetPolicy"]

    def _all(self, method: str, request: Message, call: Call) -> Message:
        with self._lock:
            workers = self._ready()
            answer: wire.ModelStatus = self._ask(
                workers[0], method, request, wire.ModelStatus, call.client
            )
            done = [workers[0]]
            try:
                for worker in workers[1:]:
                    self._ask(worker, method, request, wire.ModelStatus, call.client)
                    done.append(worker)
            except FirewallError as error:
                self._undo(done, method, request, call.client)
                raise ConfigError(f"a worker could not follow the others: {error}") from error
            if answer.changed:
                self._made.append((method, request))
        return answer

    def _undo(self, workers: list[Worker], method: str, request: Any, who: str) -> None:
        """Back to what the worker that failed still serves."""
        if method == "StartShadow":
            back: tuple[str, Message] = ("DropShadow", wire.DropShadowRequest(model=request.model))
        elif method == "DropShadow":
            return
        else:
            back = ("Rollback", wire.RollbackRequest(model=request.model))
        for worker in workers:
            try:
                self._ask(worker, *back, wire.ModelStatus, who)
            except FirewallError:
                log.exception("worker %d could not go back; it is started anew", worker.number)
                worker.process.terminate()

    def _ready(self) -> list[Worker]:
        workers = self._workers()
        if not workers:
            raise NotReady("no worker is ready")
        return workers

    def _ask(self, worker: Worker, method: str, request: Message, answer: Any, who: str) -> Any:
        with grpc.insecure_channel(f"127.0.0.1:{worker.admin_port}") as channel:
            ask = channel.unary_unary(
                _SERVICE + method,
                request_serializer=type(request).SerializeToString,
                response_deserializer=answer.FromString,
            )
            metadata = ((OPERATOR_KEY, who), ("authorization", f"Bearer {self._secret}"))
            try:
                return ask(request, timeout=_TIMEOUT, metadata=metadata)
            except grpc.RpcError as error:
                raise _meant(error) from error


_COUNTS = ("rows", "verdicts_differ", "labels_differ", "would_refuse", "dropped", "failed")


def _meant(error: grpc.RpcError) -> FirewallError:
    text = error.details() or error.code().name
    if error.code() is grpc.StatusCode.NOT_FOUND:
        return NotFound(text)
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        field, _, problem = text.partition(": ")
        return InvalidInput(field, problem)
    return ConfigError(text)
