"""`firewall.v1.AdminService`: changes of what is served, on a port of its own."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from firewall.errors import InvalidInput
from firewall.screening.policy import Policy
from firewall.screening.verdict import Verdict
from firewall.serve.admission import Admission
from firewall.serve.arrival import Arrivals
from firewall.serve.boundary import Boundary
from firewall.serve.call import Call
from firewall.serve.identity import Names
from firewall.serve.interceptor import Interceptor
from firewall.serve.metrics import Metrics
from firewall.serve.models import Models
from firewall.serve.review import Review
from firewall.serve.rollout import Rollout
from firewall.serve.runtime import ServedModel
from firewall.serve.services import generic_handler, message_methods
from firewall.serve.shadow import Shadow
from firewall.serve.status import to_admin_status
from firewall.serve.tls import Credentials, bind
from firewall.serve.workers import Workers
from firewall.wire import admin_pb2 as wire

ADMIN: ServiceDescriptor = wire.DESCRIPTOR.services_by_name["AdminService"]
#: Changes are rare, and made one at a time.
_THREADS, _BACKLOG = 4, 16
_MAX_MESSAGE = 1 << 20
#: Bytes of a path on the server.
_MAX_PATH = 4096


class AdminService:
    """Reads a message, asks for a change, writes what is live then."""

    def __init__(self, models: Models, rollout: Rollout, review: Review) -> None:
        self._models = models
        self._rollout = rollout
        self._review = review

    def Status(self, request: wire.StatusRequest, call: Call) -> Message:  # noqa: N802
        """What is live under every name."""
        return wire.StatusResponse(
            models=[self._status(slot.live.name, changed=False) for slot in self._models]
        )

    def Reload(self, request: wire.ReloadRequest, call: Call) -> Message:  # noqa: N802
        """Serve the bundle that lies at a path now."""
        path = _path(request.path) if request.path else None
        done = self._rollout.reload(request.model, call.client, path)
        return self._status(request.model, changed=done)

    def Rollback(self, request: wire.RollbackRequest, call: Call) -> Message:  # noqa: N802
        """Undo the last change."""
        self._rollout.rollback(request.model, call.client)
        return self._status(request.model, changed=True)

    def SetPolicy(self, request: wire.SetPolicyRequest, call: Call) -> Message:  # noqa: N802
        """Decide by another policy."""
        policy = Policy.parse(request.toml) if request.toml else None
        done = self._rollout.set_policy(request.model, call.client, policy)
        return self._status(request.model, changed=done)

    def StartShadow(self, request: wire.StartShadowRequest, call: Call) -> Message:  # noqa: N802
        """Let a candidate see a share of the traffic."""
        if not request.path:
            raise InvalidInput("path", "is empty; expected where the candidate's bundle lies")
        path = _path(request.path)
        self._rollout.start_shadow(request.model, call.client, path, request.percent)
        return self._status(request.model, changed=True)

    def PromoteShadow(  # noqa: N802
        self, request: wire.PromoteShadowRequest, call: Call
    ) -> Message:
        """Serve the candidate."""
        self._rollout.promote(request.model, call.client)
        return self._status(request.model, changed=True)

    def DropShadow(self, request: wire.DropShadowRequest, call: Call) -> Message:  # noqa: N802
        """Compare no more."""
        self._rollout.drop(request.model, call.client)
        return self._status(request.model, changed=True)

    def ListQuarantine(  # noqa: N802
        self, request: wire.ListQuarantineRequest, call: Call
    ) -> Message:
        """What was refused, flagged or drawn by lot."""
        return self._review.find(request)

    def GetQuarantined(  # noqa: N802
        self, request: wire.GetQuarantinedRequest, call: Call
    ) -> Message:
        """One row, with its image."""
        return self._review.get(request)

    def LabelQuarantined(  # noqa: N802
        self, request: wire.LabelQuarantinedRequest, call: Call
    ) -> Message:
        """What a person sees in it."""
        return self._review.label(request, call.client)

    def ForgetClient(self, request: wire.ForgetClientRequest, call: Call) -> Message:  # noqa: N802
        """Remove every row and image of a client."""
        return self._review.forget(request, call.client)

    def _status(self, model: str, *, changed: bool) -> wire.ModelStatus:
        slot = self._rollout.slot(model)
        live, before, shadow = slot.live, slot.before, slot.shadow
        policy = live.guard.policy
        return wire.ModelStatus(
            model=live.name,
            version=live.manifest.version,
            bundle=live.digest,
            path=str(self._rollout.path(live.name)),
            policy=policy.digest,
            mode=policy.mode,
            false_positive_rate=policy.false_positive_rate,
            ready=live.ready,
            before=None if before is None else _change(before),
            shadow=None if shadow is None else _shadow(shadow),
            changed=changed,
        )


class AdminServer:
    """The service on its port."""

    def __init__(
        self,
        service: object,
        metrics: Metrics,
        address: str,
        credentials: Credentials | None,
        identity: Names,
    ) -> None:
        """Bind.

        Args:
            service: what answers, with a method for each of `AdminService`.
            metrics: told of every call.
            address: host and port.
            credentials: of mutual TLS; None for a loopback address.
            identity: whom an operator is taken for.

        Raises:
            ConfigError: the port cannot be bound.

        """

        def draining() -> bool:
            return False

        self._workers, self._arrivals = Workers(_THREADS, "admin"), Arrivals()
        boundary = Boundary(
            self._workers,
            metrics,
            draining,
            backlog=_BACKLOG,
            max_wait=math.inf,
            identity=identity,
            admission=Admission(_THREADS),
            status=to_admin_status,
            secure=credentials is not None,
        )
        interceptor = Interceptor(
            frozenset({ADMIN.full_name}),
            boundary,
            self._workers,
            self._arrivals,
            ThreadPoolExecutor(1, thread_name_prefix="admin-side"),
            draining,
        )
        self._server = grpc.server(
            cast(ThreadPoolExecutor, self._workers),
            interceptors=[interceptor],
            options=(
                ("grpc.max_receive_message_length", _MAX_MESSAGE),
                ("grpc.so_reuseport", 0),
            ),
        )
        self._server.add_generic_rpc_handlers(
            (generic_handler(ADMIN, message_methods(ADMIN, service)),)
        )
        self.port: int = bind(self._server, address, credentials, "--admin-port")

    def start(self) -> None:
        """Answer."""
        self._server.start()

    def stop(self, grace: float = 5.0) -> None:
        """Let running changes end, and free the port."""
        self._server.stop(grace).wait()
        self._workers.close(grace)
        self._arrivals.close()


def _path(text: str) -> Path:
    if len(text) > _MAX_PATH or "\0" in text:
        raise InvalidInput("path", f"expected at most {_MAX_PATH} characters, none of them NUL")
    return Path(text)


def _change(model: ServedModel) -> wire.Change:
    return wire.Change(
        version=model.manifest.version, bundle=model.digest, policy=model.guard.policy.digest
    )


def _shadow(shadow: Shadow) -> wire.ShadowStatus:
    return wire.ShadowStatus(
        version=shadow.candidate.manifest.version,
        bundle=shadow.candidate.digest,
        percent=shadow.percent,
        rows=shadow.rows,
        verdicts_differ=shadow.differing,
        labels_differ=shadow.labels,
        would_refuse=sum(
            count
            for (live, other), count in shadow.verdicts.items()
            if live == Verdict.ACCEPT.value and other != live
        ),
        dropped=shadow.dropped,
        failed=shadow.failed,
    )
