"""The methods of `firewall.v1.AdminService` in a server of one process."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.message import Message

from firewall.errors import InvalidInput
from firewall.screening.policy import Policy
from firewall.screening.verdict import Verdict
from firewall.serve.admin.quarantine import QuarantineReview
from firewall.serve.context import RequestContext
from firewall.serve.model import ServedModel
from firewall.serve.repository import ModelRepository
from firewall.serve.rollout import Rollout
from firewall.serve.shadow import Shadow
from firewall.wire import admin_pb2 as wire

#: Characters of a path on the server.
_MAX_PATH = 4096


class AdminService:
    """Reads a message, asks for a change, and writes what is live afterwards."""

    def __init__(
        self, repository: ModelRepository, rollout: Rollout, review: QuarantineReview
    ) -> None:
        self._repository = repository
        self._rollout = rollout
        self._review = review

    def Status(self, request: wire.StatusRequest, context: RequestContext) -> Message:
        """Describe what is live under every name."""
        return wire.StatusResponse(
            models=[self.status(entry.live.name, changed=False) for entry in self._repository]
        )

    def Reload(self, request: wire.ReloadRequest, context: RequestContext) -> Message:
        """Serve the bundle that lies at a path now."""
        path = checked_path(request.path) if request.path else None
        changed = self._rollout.reload(
            request.model, context.client, path, allow_downgrade=request.allow_downgrade
        )
        return self.status(request.model, changed=changed)

    def Rollback(self, request: wire.RollbackRequest, context: RequestContext) -> Message:
        """Undo the last change."""
        self._rollout.rollback(request.model, context.client)
        return self.status(request.model, changed=True)

    def SetPolicy(self, request: wire.SetPolicyRequest, context: RequestContext) -> Message:
        """Decide by another policy."""
        policy = Policy.parse(request.toml) if request.toml else None
        changed = self._rollout.set_policy(request.model, context.client, policy)
        return self.status(request.model, changed=changed)

    def StartShadow(self, request: wire.StartShadowRequest, context: RequestContext) -> Message:
        """Let a candidate see a share of the traffic."""
        path = checked_path(request.path)
        self._rollout.start_shadow(request.model, context.client, path, request.percent)
        return self.status(request.model, changed=True)

    def PromoteShadow(self, request: wire.PromoteShadowRequest, context: RequestContext) -> Message:
        """Serve the candidate."""
        self._rollout.promote(request.model, context.client)
        return self.status(request.model, changed=True)

    def DropShadow(self, request: wire.DropShadowRequest, context: RequestContext) -> Message:
        """Stop comparing a candidate."""
        self._rollout.drop(request.model, context.client)
        return self.status(request.model, changed=True)

    def ListQuarantine(
        self, request: wire.ListQuarantineRequest, context: RequestContext
    ) -> Message:
        """List rows that were refused, flagged or sampled."""
        return self._review.find(request)

    def GetQuarantined(
        self, request: wire.GetQuarantinedRequest, context: RequestContext
    ) -> Message:
        """Show one row with its image."""
        return self._review.get(request)

    def LabelQuarantined(
        self, request: wire.LabelQuarantinedRequest, context: RequestContext
    ) -> Message:
        """Record what a person sees in a row."""
        return self._review.label(request, context.client)

    def ForgetClient(self, request: wire.ForgetClientRequest, context: RequestContext) -> Message:
        """Remove every row and image of a client."""
        return self._review.forget(request, context.client)

    def status(self, model: str, *, changed: bool) -> wire.ModelStatus:
        """Describe one model."""
        entry = self._rollout.entry(model)
        live, before, shadow = entry.live, entry.before, entry.shadow
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


def checked_path(text: str) -> Path:
    """A path on the server's machine.

    Raises:
        InvalidInput: empty, too long, or with a NUL.

    """
    if not text:
        raise InvalidInput("path", "is empty; expected the folder of a bundle")
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
