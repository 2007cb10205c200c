"""What happens after an answer: metrics, audit log, quarantine, drift.

An observer sees every answered request and changes nothing about it. It runs in the request's
thread and must not wait: what takes time goes through a bounded queue of its own.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from firewall.quarantine.entry import Entry
from firewall.screening.drift import Drift
from firewall.screening.live import LiveGuard
from firewall.screening.verdict import Answer, Verdict
from firewall.serve.audit import Audit
from firewall.serve.context import RequestContext
from firewall.serve.metrics import Metrics

#: Seconds between two evaluations of the evidence for drift.
_PERIOD = 0.2


@dataclass(frozen=True)
class Subject:
    """The model that answered: name, version, digest of its bundle, and the guard that decided."""

    name: str
    version: str
    digest: str
    guard: LiveGuard


class Observer(Protocol):
    """Told of every answered request."""

    def observe(self, rows: npt.NDArray[Any], answer: Answer, context: RequestContext) -> None:
        """See a request.

        Args:
            rows: [N, *input shape], as they were screened.
            answer: to them.
            context: of the request.

        """
        ...


class VerdictMetrics:
    """Counts verdicts."""

    def __init__(self, subject: Subject, metrics: Metrics) -> None:
        self._subject, self._metrics = subject, metrics

    def observe(self, rows: npt.NDArray[Any], answer: Answer, context: RequestContext) -> None:
        """Count every row."""
        for decision in answer.decisions:
            self._metrics.decided(self._subject.name, decision)


class AuditTrail:
    """Writes a line for every row that was not simply accepted."""

    def __init__(self, subject: Subject, audit: Audit) -> None:
        self._subject, self._audit = subject, audit

    def observe(self, rows: npt.NDArray[Any], answer: Answer, context: RequestContext) -> None:
        """Write the rows that an operator may look for."""
        policy = self._subject.guard.policy
        for row, decision in enumerate(answer.decisions):
            if decision.verdict is Verdict.ACCEPT and not decision.fault:
                continue
            self._audit.decided(
                request_id=context.request_id,
                client=context.client,
                model=self._subject.name,
                version=self._subject.version,
                policy=policy.digest,
                exclusions=policy.applied(self._subject.name, context.client),
                row=row,
                decision=decision,
            )


@dataclass(frozen=True)
class QuarantineSettings:
    """How rows are kept.

    Attributes:
        put: takes a row, and drops it where there is no room.
        share: of all screened rows, in [0, 1], kept by lot whatever their verdict.
        pseudonym: of a client.

    """

    put: Callable[[Entry], None]
    share: float
    pseudonym: Callable[[str], str]


class Quarantine:
    """Keeps refused and flagged rows, and a random share of all screened ones."""

    def __init__(self, subject: Subject, settings: QuarantineSettings) -> None:
        self._subject, self._settings = subject, settings

    def observe(self, rows: npt.NDArray[Any], answer: Answer, context: RequestContext) -> None:
        """Keep what has to be kept."""
        for row, decision in enumerate(answer.decisions):
            screened = decision.p_value is not None or decision.fault
            sampled = screened and random.random() < self._settings.share
            if sampled or decision.verdict is not Verdict.ACCEPT:
                self._settings.put(self._entry(rows, row, answer, context, sampled))

    def _entry(
        self,
        rows: npt.NDArray[Any],
        row: int,
        answer: Answer,
        context: RequestContext,
        sampled: bool,
    ) -> Entry:
        decision, subject = answer.decisions[row], self._subject
        return Entry(
            request_id=context.request_id,
            row=row,
            client=self._settings.pseudonym(context.client),
            model=subject.name,
            version=subject.version,
            bundle=subject.digest,
            policy=subject.guard.policy.digest,
            verdict=decision.verdict.value,
            reasons=decision.reasons,
            statistics=dict(decision.statistics),
            p_value=decision.p_value,
            said=int(answer.logits[row].argmax()),
            # A copy: the batch is a view of the whole message.
            wire=rows[row].copy(),
            sampled=sampled,
        )


class DriftAlarm:
    """Follows whether p-values are still those of inputs like the calibration data."""

    def __init__(self, subject: Subject, metrics: Metrics, audit: Audit) -> None:
        rate = subject.guard.policy.false_positive_rate
        self._subject, self._metrics, self._audit = subject, metrics, audit
        self._drift = Drift(rate, subject.guard.calibration.least_group(rate))
        self._lock = threading.Lock()
        self._alarm = ""
        self._due = 0.0

    def observe(self, rows: npt.NDArray[Any], answer: Answer, context: RequestContext) -> None:
        """Update the evidence; an alarm that begins or ends is an audit event."""
        with self._lock:
            self._drift.see(
                decision.p_value for decision in answer.decisions if decision.p_value is not None
            )
            now = time.monotonic()
            due = now >= self._due
            # While there is no alarm, to ask for one is cheap; its end is looked for now and then.
            alarm = self._drift.alarm if due or not self._alarm else self._alarm
            changed, self._alarm = alarm != self._alarm, alarm
            if not (due or changed):
                return
            self._due = now + _PERIOD
            evidence = self._drift.evidence
        self._metrics.drift(self._subject.name, evidence)
        if changed:
            self._audit.event(
                "calibration",
                model=self._subject.name,
                version=self._subject.version,
                alarm=alarm or "p-values are again as calibration allows",
            )
