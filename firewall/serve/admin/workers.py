"""`firewall.v1.AdminService` over several workers: a change is made by all of them or by none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from firewall.bundle.store import Bundle
from firewall.errors import ConfigError, NotFound, NotReady, Overloaded
from firewall.screening.policy import Policy
from firewall.serve.admin.quarantine import QuarantineReview
from firewall.serve.admin.service import checked_path
from firewall.serve.context import RequestContext
from firewall.serve.process.desired_state import (
    Candidate,
    DesiredState,
    ModelState,
    RunFolder,
    Version,
    WorkerReport,
)
from firewall.wire import admin_pb2 as wire

#: Seconds for all workers to make a change: they load a bundle and test themselves.
CHANGE_TIMEOUT = 300.0
#: Seconds that a change waits for the one before it.
_LOCK_TIMEOUT = 30.0
_PERIOD = 0.05
_COUNTS = ("rows", "verdicts_differ", "labels_differ", "would_refuse", "dropped", "failed")


class WorkerAdmin:
    """Writes the desired state, and waits until every worker has reached it."""

    def __init__(
        self,
        folder: RunFolder,
        workers: Callable[[], list[int]],
        review: QuarantineReview,
        open_bundle: Callable[[Path], Bundle],
    ) -> None:
        """Begin with what the workers' settings say.

        Args:
            folder: shared with the workers.
            workers: numbers of those that run.
            review: answers for the quarantine, which all workers share.
            open_bundle: checks a bundle whole.

        """
        self._open_bundle = open_bundle
        self._folder, self._workers, self._review = folder, workers, review
        self._lock = threading.Lock()
        self._state = DesiredState()

    def Status(self, request: wire.StatusRequest, context: RequestContext) -> Message:
        """Describe what is live, with the candidates' counts of all workers together."""
        reports = self._reports()
        if not reports:
            raise NotReady("no worker is ready")
        answers = [_statuses(report) for report in reports]
        for other in answers[1:]:
            for mine, its in zip(answers[0], other, strict=True):
                mine.ready = mine.ready and its.ready
                if mine.HasField("shadow") and its.HasField("shadow"):
                    for count in _COUNTS:
                        total = getattr(mine.shadow, count) + getattr(its.shadow, count)
                        setattr(mine.shadow, count, total)
        return wire.StatusResponse(models=answers[0])

    def Reload(self, request: wire.ReloadRequest, context: RequestContext) -> Message:
        """Serve the bundle that lies at a path now."""
        path = checked_path(request.path) if request.path else None
        status = self._status(request.model)
        # Opened here too: what is wrong with a bundle is known before any worker is asked.
        if self._open_bundle(path or Path(status.path)).digest == status.bundle:
            return status

        def change(state: ModelState) -> ModelState:
            live = replace(state.live, path=state.live.path if path is None else str(path))
            return replace(state, live=live, before=state.live, revision=state.revision + 1)

        return self._change(request.model, context, change, allow_downgrade=request.allow_downgrade)

    def Rollback(self, request: wire.RollbackRequest, context: RequestContext) -> Message:
        """Undo the last change."""

        def change(state: ModelState) -> ModelState:
            if state.before is None:
                raise ConfigError("rollback: nothing was changed before")
            return replace(state, live=state.before, before=state.live)

        return self._change(request.model, context, change)

    def SetPolicy(self, request: wire.SetPolicyRequest, context: RequestContext) -> Message:
        """Decide by another policy."""
        if request.toml:
            Policy.parse(request.toml)

        def change(state: ModelState) -> ModelState:
            live = Version(state.live.path, request.toml or None)
            return state if live == state.live else replace(state, live=live, before=state.live)

        return self._change(request.model, context, change)

    def StartShadow(self, request: wire.StartShadowRequest, context: RequestContext) -> Message:
        """Let a candidate see a share of the traffic."""
        candidate = Candidate(str(checked_path(request.path)), request.percent)
        return self._change(
            request.model, context, lambda state: replace(state, candidate=candidate)
        )

    def PromoteShadow(self, request: wire.PromoteShadowRequest, context: RequestContext) -> Message:
        """Serve the candidate."""

        def change(state: ModelState) -> ModelState:
            if state.candidate is None:
                raise ConfigError("shadow: no candidate is compared")
            live = replace(state.live, path=state.candidate.path)
            return replace(state, live=live, before=state.live, candidate=None)

        return self._change(request.model, context, change)

    def DropShadow(self, request: wire.DropShadowRequest, context: RequestContext) -> Message:
        """Stop comparing a candidate."""

        def change(state: ModelState) -> ModelState:
            if state.candidate is None:
                raise ConfigError("shadow: no candidate is compared")
            return replace(state, candidate=None)

        return self._change(request.model, context, change)

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

    def refresh(self, who: str) -> None:
        """Have settings, policies and bundles read again; policies set by hand end."""
        with self._lock:
            models = {
                name: replace(state, live=Version(state.live.path), before=None)
                for name, state in self._state.models.items()
            }
            self._write(replace(self._state, models=models, refresh=self._state.refresh + 1), who)

    def _reports(self) -> list[WorkerReport]:
        reports = (self._folder.read_report(number) for number in self._workers())
        return [report for report in reports if report is not None]

    def _change(
        self,
        model: str,
        context: RequestContext,
        change: Callable[[ModelState], ModelState],
        *,
        allow_downgrade: bool = False,
    ) -> wire.ModelStatus:
        if not self._lock.acquire(timeout=_LOCK_TIMEOUT):
            raise Overloaded("another change is in progress", retry_after=_LOCK_TIMEOUT)
        try:
            status = self._status(model)
            before = self._state
            state = before.models.get(status.model, ModelState())
            models = {**before.models, status.model: change(state)}
            self._write(
                replace(before, models=models, allow_downgrade=allow_downgrade), context.client
            )
            if problem := self._wait():
                self._write(replace(before, allow_downgrade=True), context.client)
                self._wait()
                raise ConfigError(problem)
            after = self._status(status.model)
            after.changed = (after.bundle, after.policy, after.HasField("shadow")) != (
                status.bundle,
                status.policy,
                status.HasField("shadow"),
            )
            return after
        finally:
            self._lock.release()

    def _write(self, state: DesiredState, who: str) -> None:
        self._state = replace(state, generation=self._state.generation + 1, who=who)
        self._folder.write_desired(self._state)

    def _wait(self) -> str:
        """Wait until every worker has reached the state; returns the first problem."""
        end = time.monotonic() + CHANGE_TIMEOUT
        while time.monotonic() < end:
            reports = [self._folder.read_report(number) for number in self._workers()]
            reached = [
                report
                for report in reports
                if report is not None and report.generation == self._state.generation
            ]
            for report in reached:
                if report.problem:
                    return report.problem
            # A worker that has ended is replaced by one that begins with the new state.
            if reached and len(reached) == len(reports):
                return ""
            time.sleep(_PERIOD)
        return f"the workers did not make the change within {CHANGE_TIMEOUT:g} s"

    def _status(self, model: str) -> wire.ModelStatus:
        reports = self._reports()
        if not reports:
            raise NotReady("no worker is ready")
        statuses = _statuses(reports[0])
        if not model and len(statuses) == 1:
            return statuses[0]
        for status in statuses:
            if status.model == model:
                return status
        known = ", ".join(sorted(status.model for status in statuses))
        raise NotFound(f"model_name: {model[:128]!r} is not served; served: {known}")


def _statuses(report: WorkerReport) -> list[wire.ModelStatus]:
    return [ParseDict(body, wire.ModelStatus()) for body in report.models]
