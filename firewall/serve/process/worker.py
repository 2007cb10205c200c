"""A worker's part: bring what is served to the desired state, and report."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from firewall.errors import FirewallError
from firewall.screening.policy import Policy
from firewall.serve.process.desired_state import (
    DesiredState,
    ModelState,
    RunFolder,
    Version,
    WorkerReport,
)
from firewall.serve.repository import ModelRepository
from firewall.serve.rollout import Rollout

log = logging.getLogger(__name__)

#: Seconds between two looks at the desired state, and at most between two reports.
_PERIOD = 0.1
_REPORT_EVERY = 10


class Worker:
    """Follows the desired state in a thread."""

    def __init__(
        self,
        folder: RunFolder,
        number: int,
        repository: ModelRepository,
        rollout: Rollout,
        *,
        is_ready: Callable[[], bool],
        status: Callable[[], list[dict[str, Any]]],
    ) -> None:
        """Follow nothing before `start`.

        Args:
            folder: shared with the supervisor.
            number: of this worker.
            repository: what it serves.
            rollout: makes changes.
            is_ready: whether it answers requests.
            status: of every model.

        """
        self._folder, self._number = folder, number
        self._repository, self._rollout = repository, rollout
        self._is_ready, self._status = is_ready, status
        self._applied = DesiredState()
        self._problem = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="desired-state", daemon=True)

    def start(self) -> None:
        """Reach the desired state now, report, and follow from now on.

        Raises:
            FirewallError: the state cannot be reached.

        """
        self._apply(self._folder.read_desired())
        if self._problem:
            raise FirewallError(self._problem)
        self._report()
        self._thread.start()

    def stop(self) -> None:
        """Follow no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        rounds = 0
        while not self._stop.wait(_PERIOD):
            rounds += 1
            try:
                desired = self._folder.read_desired()
                if desired.generation != self._applied.generation:
                    self._apply(desired)
                    self._report()
                elif rounds % _REPORT_EVERY == 0:
                    self._report()
            except Exception:  # the next look may go well
                log.exception("failed to follow the desired state")

    def _report(self) -> None:
        self._folder.write_report(
            self._number,
            WorkerReport(
                os.getpid(),
                self._applied.generation,
                self._problem,
                self._is_ready(),
                self._status(),
            ),
        )

    def _apply(self, desired: DesiredState) -> None:
        """Reach a state; what cannot be reached is reported."""
        before, self._applied, self._problem = self._applied, desired, ""
        if desired.refresh != before.refresh:
            self._rollout.refresh(desired.who)
        for entry in self._repository:
            name = entry.live.name
            want = desired.models.get(name, ModelState())
            have = before.models.get(name, ModelState())
            if want == have:
                continue
            try:
                self._reach(name, have, want, desired)
            except FirewallError as error:
                self._problem = str(error)
                return

    def _reach(self, name: str, have: ModelState, want: ModelState, desired: DesiredState) -> None:
        who, rollout = desired.who, self._rollout
        if want.live == have.before and want.before == have.live:
            rollout.rollback(name, who)
        elif (
            have.candidate is not None
            and want.candidate is None
            and want.live.path == have.candidate.path
            and want.live != have.live
        ):
            rollout.promote(name, who)
            return
        else:
            first = have.live
            # The state that a rollback brings back is loaded first.
            if want.before is not None and want.before not in (have.live, have.before):
                self._load(name, have.live, want.before, desired)
                have = ModelState(want.before)
            if want.live == first and have.live != first:
                rollout.rollback(name, who)
            elif want.live != have.live or want.revision != have.revision:
                self._load(name, have.live, want.live, desired)
        if want.candidate != have.candidate:
            if want.candidate is None:
                rollout.drop(name, who)
            else:
                place = Path(want.candidate.path)
                rollout.start_shadow(name, who, place, want.candidate.percent)

    def _load(self, name: str, have: Version, want: Version, desired: DesiredState) -> None:
        if want.path != have.path or want == have:
            path = Path(want.path) if want.path else None
            self._rollout.reload(name, desired.who, path, allow_downgrade=desired.allow_downgrade)
        if want.policy != have.policy:
            policy = None if want.policy is None else Policy.parse(want.policy)
            self._rollout.set_policy(name, desired.who, policy)
