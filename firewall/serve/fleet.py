"""`firewall.v1.AdminService` over several workers: a change is made by all of them or by none."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class _State:
    """What a model serves; None is what its worker began with."""

    path: str | None = None
    policy: str | None = None


@dataclass
class _Served:
    """What a model serves now and what it served before, as far as it was changed by hand."""

    live: _State = _State()
    before: _State | None = None
    shadow: wire.StartShadowRequest | None = None

    def changed(self, method: str, request: Any) -> None:
        """All workers have made a change."""
        if method == "StartShadow":
            self.shadow = request
        elif method == "DropShadow":
            self.shadow = None
        elif method == "Rollback":
            self.live, self.before = self.before or _State(), self.live
        else:
            self.before = self.live
            if method == "Reload":
                self.live = replace(self.live, path=request.path or self.live.path)
            elif method == "SetPolicy":
                self.live = replace(self.live, policy=request.toml or None)
            elif method == "PromoteShadow" and self.shadow is not None:
                self.live = replace(self.live, path=self.shadow.path)
                self.shadow = None

    def changes(self, model: str) -> list[tuple[str, Message]]:
        """By which a worker that has just begun comes to the same, with the same to go back to."""
        found: list[tuple[str, Message]] = []

        def reach(then: _State, now: _State) -> None:
            # What differs by one change goes back to the beginning by a rollback.
            if now.path != then.path and now.path is not None:
                found.append(("Reload", wire.ReloadRequest(model=model, path=now.path)))
            elif now.policy != then.policy and now.policy is not None:
                found.append(("SetPolicy", wire.SetPolicyRequest(model=model, toml=now.policy)))
            elif now != then:
                found.append(("Rollback", wire.RollbackRequest(model=model)))

        first, last = _State(), self.before or self.live
        # What the last change was about comes last: only that can be taken back by a rollback.
        halfway = _State(path=last.path)
        if self.before is not None and self.before.path != self.live.path:
            halfway = _State(policy=last.policy)
        reach(first, halfway)
        reach(halfway, last)
        reach(last, self.live)
        if self.shadow is not None:
            found.append(("StartShadow", self.shadow))
        return found


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
        self._served: dict[str, _Served] = {}

    def Status(self, request: wire.StatusRequest, call: Call) -> Message:  # noqa: N802
        """Of the first worker, with the shadows' counts of all."""
        answers = []
        for worker in self._workers():
            with contextlib.suppress(_Gone):
                answers.append(
                    self._ask(worker, "Status", request, wire.StatusResponse, call.client)
                )
        if not answers:
            raise NotReady("no worker is ready")
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

    def ListQuarantine(  # noqa: N802
        self, request: wire.ListQuarantineRequest, call: Call
    ) -> Message:
        """By any worker: they have one store."""
        return self._any("ListQuarantine", request, wire.ListQuarantineResponse, call)

    def GetQuarantined(  # noqa: N802
        self, request: wire.GetQuarantinedRequest, call: Call
    ) -> Message:
        """By any worker."""
        return self._any("GetQuarantined", request, wire.QuarantinedRow, call)

    def LabelQuarantined(  # noqa: N802
        self, request: wire.LabelQuarantinedRequest, call: Call
    ) -> Message:
        """By any worker."""
        return self._any("LabelQuarantined", request, wire.QuarantinedRow, call)

    def ForgetClient(self, request: wire.ForgetClientRequest, call: Call) -> Message:  # noqa: N802
        """By any worker."""
        return self._any("ForgetClient", request, wire.ForgetClientResponse, call)

    def join(self, worker: Worker, add: Callable[[], None]) -> None:
        """Bring a new worker to where the others are, and add it; no change comes in between.

        Raises:
            FirewallError: it cannot follow them.

        """
        with self._lock:
            for model, served in self._served.items():
                for method, request in served.changes(model):
                    self._ask(worker, method, request, wire.ModelStatus, "supervisor")
            add()

    def refreshed(self) -> None:
        """Files were read again: policies that were set by hand are over."""
        with self._lock:
            for served in self._served.values():
                served.live = replace(served.live, policy=None)
                served.before = None

    def _any(self, method: str, request: Message, answer: Any, call: Call) -> Message:
        for worker in self._workers():
            with contextlib.suppress(_Gone):
                found: Message = self._ask(worker, method, request, answer, call.client)
                return found
        raise NotReady("no worker is ready")

    def _all(self, method: str, request: Message, call: Call) -> Message:
        with self._lock:
            answer: wire.ModelStatus | None = None
            done: list[Worker] = []
            for worker in self._workers():
                try:
                    found = self._ask(worker, method, request, wire.ModelStatus, call.client)
                except _Gone:
                    # The one in its place will be brought to where the others are.
                    continue
                except FirewallError as error:
                    if answer is None:
                        raise
                    self._undo(done, method, request, call.client)
                    raise ConfigError(f"a worker could not follow the others: {error}") from error
                answer = answer or found
                done.append(worker)
            if answer is None:
                raise NotReady("no worker is ready")
            if answer.changed:
                served = self._served.setdefault(answer.model, _Served())
                served.changed(method, request)
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
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    raise _Gone(f"worker {worker.number} does not answer") from error
                raise _meant(error) from error


class _Gone(FirewallError):
    """A worker has ended, or is about to: nobody serves by it."""


_COUNTS = ("rows", "verdicts_differ", "labels_differ", "would_refuse", "dropped", "failed")


def _meant(error: grpc.RpcError) -> FirewallError:
    text = error.details() or error.code().name
    if error.code() is grpc.StatusCode.NOT_FOUND:
        return NotFound(text)
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        field, _, problem = text.partition(": ")
        return InvalidInput(field, problem)
    return ConfigError(text)
