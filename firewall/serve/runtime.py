"""The data plane: a validated batch in, decisions and outputs out. Knows no protocol."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.bundle.manifest import Manifest
from firewall.bundle.store import Bundle
from firewall.errors import (
    InvalidInput,
    NotReady,
    Overloaded,
    Unsupported,
)
from firewall.quarantine.entry import Entry
from firewall.screening.certificate import Certificate, interval_certificates
from firewall.screening.drift import Drift
from firewall.screening.live import LiveGuard, Plan
from firewall.screening.load import read_selftest, read_smoothing
from firewall.screening.policy import Policy
from firewall.screening.preprocess import check_values
from firewall.screening.remote import RemoteGuard
from firewall.screening.selftest import same_classifier
from firewall.screening.span import Span
from firewall.screening.verdict import Answer, Decision, Verdict
from firewall.serve.audit import Audit
from firewall.serve.batcher import Batcher, Queued
from firewall.serve.call import TRACE_CONTEXT, Call
from firewall.serve.metrics import Metrics
from firewall.serve.monitoring import Memory, Monitors
from firewall.serve.shadow import Shadow
from firewall.serve.staged import BLOCKING, Steps, finish
from firewall.serve.watch import Watch

#: Batches that are with a classifier elsewhere at a time.
_LANES = 4
#: Requests for certificates that are answered at a time, by model.
_CERTIFYING = 2


@dataclass(frozen=True)
class Certified:
    """Certificates of a batch, by interval bounds and by smoothing: one a row, or no list.

    A row that is refused has None.
    """

    bounded: list[Certificate | None]
    smoothed: list[Certificate | None]


@dataclass(frozen=True)
class _Rows:
    wire: npt.NDArray[Any]
    plans: tuple[Plan, ...]
    deadline: float | None
    #: The field that holds values which nobody has looked at yet.
    unchecked: str = ""
    trace: tuple[tuple[str, str], ...] = ()


class ServedModel:
    """One bundle, live under its name."""

    def __init__(
        self,
        bundle: Bundle,
        guard: LiveGuard,
        *,
        metrics: Metrics,
        audit: Audit,
        batch_rows: int,
        queue_rows: int,
        keep: Callable[[Entry], None] | None = None,
        keep_share: float = 0.0,
        pseudonym: Callable[[str], str] = lambda client: client,
        watch: Watch | None = None,
        memory: Memory | None = None,
    ) -> None:
        """Nothing is answered before the self-test, and no metric speaks of it before `go_live`.

        Args:
            bundle: checked.
            guard: of it.
            metrics: told what happens.
            audit: told what is not simply accepted.
            batch_rows: rows of a batch, at most, unless they are done in no time.
            queue_rows: rows that may wait.
            keep: takes refused and flagged rows; None keeps none.
            keep_share: of all screened rows, in [0, 1]: kept by lot, whatever their verdict.
            pseudonym: of clients, for what is kept.
            watch: of a classifier elsewhere that another model has as well; its own without.
            memory: where monitors remember; None where the policy names none.

        Raises:
            PluginError: a monitor is not installed, or breaks the contract.
            ConfigError: a setting of one is wrong.

        """
        self._keep, self._keep_share, self._pseudonym = keep, keep_share, pseudonym
        # Without its graphs, which the guard has.
        self._bundle = replace(
            bundle,
            files={name: data for name, data in bundle.files.items() if not name.endswith(".onnx")},
        )
        self.digest = bundle.digest
        self._memory = memory
        self._monitors: Monitors | None = None
        if memory is not None:
            self._monitors = Monitors(
                guard.policy, bundle.manifest.name, bundle.manifest.input, memory
            )
        self.manifest: Manifest = bundle.manifest
        #: Model name.
        self.name: str = bundle.manifest.name
        self.labels = bundle.labels
        self.guard = guard
        #: Sees what was answered, and decides nothing.
        self.shadow: Shadow | None = None
        self._selftest = read_selftest(bundle)
        self._smoothing = read_smoothing(bundle)
        self._batch_rows, self._queue_rows = batch_rows, queue_rows
        self._metrics = metrics
        self._audit = audit
        self._ready = False
        rate = guard.policy.false_positive_rate
        self._drift = Drift(rate, guard.calibration.least_group(rate))
        self._drift_lock = threading.Lock()
        self._drifted = ""
        self.watch = watch
        if isinstance(guard.compiled, RemoteGuard) and watch is None:
            remote = guard.compiled
            self.watch = Watch(remote.classifier, lambda: same_classifier(self._selftest, remote))
        self._batcher: Batcher[_Rows, Answer] = Batcher(
            self._run,
            # Who comes first need not wait for those that are computed after it.
            batch_rows=min(batch_rows, guard.compiled.rows_at_once),
            queue_rows=queue_rows,
            # One batch computes at a time; of those that wait for another server, several may.
            lanes=_LANES if isinstance(guard.compiled, RemoteGuard) else 1,
            observe=lambda rows, waited: metrics.batch(self.name, rows, waited),
        )
        # Certificates cost many passes: they may not take every thread from predictions.
        self._certifying = threading.BoundedSemaphore(_CERTIFYING)

    def go_live(self) -> None:
        """Metrics speak of this one from now on."""
        self._metrics.drift(self.name, lambda: self._drift.evidence)
        self._metrics.queue(self.name, lambda: self._batcher.queued_rows)
        self._metrics.bundle(
            self.name, self.manifest.version, self.digest, self.guard.compiled.provider
        )

    def retire(self) -> None:
        """Metrics speak of another one from now on."""
        self._metrics.retired(
            self.name, self.manifest.version, self.digest, self.guard.compiled.provider
        )

    def with_policy(self, policy: Policy) -> ServedModel:
        """The same graphs under another policy; ready when this one is.

        Raises:
            ConfigError: the policy asks for what the bundle does not have.
            CalibrationError: the policy asks for a rate that cannot be promised.

        """
        other = ServedModel(
            self._bundle,
            self.guard.with_policy(policy),
            metrics=self._metrics,
            audit=self._audit,
            batch_rows=self._batch_rows,
            queue_rows=self._queue_rows,
            keep=self._keep,
            keep_share=self._keep_share,
            pseudonym=self._pseudonym,
            watch=self.watch,
            memory=self._memory,
        )
        other._ready = self._ready
        return other

    @property
    def ready(self) -> bool:
        """Whether the self-test has passed, and a classifier elsewhere can be asked."""
        return self._ready and (self.watch is None or self.watch.up)

    def self_test(self) -> None:
        """Compare with what the bundle recorded; ready afterwards.

        Raises:
            ParityError: this machine computes something else.

        """
        self._selftest.run(self.guard.compiled)
        self._ready = True
        if self.watch is not None:
            self.watch.start()

    @property
    def backlog_seconds(self) -> float:
        """How long the rows that wait for the guard will take."""
        return self._batcher.backlog_seconds

    @property
    def remote(self) -> bool:
        """Whether its classifier is elsewhere, and may come and go."""
        return self.watch is not None

    def close(self) -> None:
        """Let go of a classifier elsewhere."""
        if self.watch is not None:
            self.watch.stop()

    def answer(self, wire: npt.NDArray[Any], call: Call) -> Answer:
        """Screen a batch of one request, together with whatever else waits.

        Args:
            wire: [N, *input shape], validated.
            call: whose it is.

        """
        return finish(self.answering(wire, call))

    def answering(self, wire: npt.NDArray[Any], call: Call, unchecked: str = "") -> Steps[Answer]:
        """The same in steps: waits for its batch.

        Args:
            wire: [N, *input shape].
            call: whose it is.
            unchecked: the field that holds values which nobody has looked at yet: a batch is looked
                at in one go.

        """
        if not self._ready:
            raise NotReady(f"model {self.name!r} has not passed its self-test yet")
        if not self.ready:
            raise NotReady(f"model {self.name!r}: the classifier behind it cannot be asked")
        plan = self.guard.plan(call.client)
        rows = _Rows(wire, (plan,) * len(wire), call.deadline, unchecked, call.trace)
        queued = time.perf_counter()
        answer: Answer = yield Queued(self._batcher, rows, len(wire), call)
        mine = [Span("queue", queued, answer.spans[0].start)]
        if self._monitors is not None and self.guard.policy.monitors:
            # What others wrote, or a store elsewhere.
            yield BLOCKING
            start = time.perf_counter()
            answer = self._monitors.look(wire, answer, call.client)
            mine.append(Span("monitors", start, time.perf_counter()))
        call.spans += mine
        name = self.name
        for span in call.spans:
            self._metrics.stage(name, span.name, span.end - span.start)
        call.spans += answer.spans
        for row, decision in enumerate(answer.decisions):
            self._metrics.decided(name, decision)
            if decision.verdict is not Verdict.ACCEPT or decision.fault:
                self._write(row, decision, call)
            if self._keep is not None:
                screened = decision.p_value is not None or decision.fault
                sampled = screened and random.random() < self._keep_share
                if sampled or decision.verdict is not Verdict.ACCEPT:
                    self._keep(self._entry(wire, row, answer, call, sampled))
        self._follow(answer)
        # Read once: it may be dropped meanwhile.
        if (shadow := self.shadow) is not None:
            shadow.offer(wire, answer, call.client)
        return answer

    def _write(self, row: int, decision: Decision, call: Call) -> None:
        policy = self.guard.policy
        self._audit.decided(
            request_id=call.request_id,
            client=call.client,
            model=self.name,
            version=self.manifest.version,
            policy=policy.digest,
            exclusions=policy.applied(self.name, call.client),
            row=row,
            decision=decision,
        )

    def _follow(self, answer: Answer) -> None:
        """Whether p-values are still those of inputs like calibration's; said when it changes."""
        with self._drift_lock:
            self._drift.see(one.p_value for one in answer.decisions if one.p_value is not None)
            alarm = self._drift.alarm
            changed, self._drifted = alarm != self._drifted, alarm
        if changed:
            self._audit.event(
                "calibration", model=self.name, version=self.manifest.version,
                alarm=alarm or "p-values are again as calibration allows",
            )  # fmt: skip

    def _entry(
        self, wire: npt.NDArray[Any], row: int, answer: Answer, call: Call, sampled: bool
    ) -> Entry:
        decision = answer.decisions[row]
        return Entry(
            request_id=call.request_id,
            row=row,
            client=self._pseudonym(call.client),
            model=self.name,
            version=self.manifest.version,
            bundle=self.digest,
            policy=self.guard.policy.digest,
            verdict=decision.verdict.value,
            reasons=decision.reasons,
            statistics=dict(decision.statistics),
            p_value=decision.p_value,
            said=int(answer.outputs[row].argmax()),
            # A copy: the batch is a view of the whole message.
            wire=wire[row].copy(),
            sampled=sampled,
        )

    @property
    def _bounds(self) -> bool:
        return self.guard.compiled.certifies and self.guard.radius > 0

    def certifies(self) -> None:
        """Nothing, or a refusal.

        Raises:
            Unsupported: the classifier cannot be bounded, or at no known radius, and the bundle
                does not smooth; or the policy says so.

        """
        if not self.guard.policy.certificates or (not self._bounds and self._smoothing is None):
            raise Unsupported(f"model {self.name!r} issues no certificates")

    def certify(self, wire: npt.NDArray[Any], call: Call) -> Certified:
        """Screen a batch, and certify what is not refused; a refused row gets none.

        Args:
            wire: [N, *input shape], validated.
            call: whose it is.

        """
        if not self._certifying.acquire(blocking=False):
            raise Overloaded(
                f"{_CERTIFYING} requests for certificates are being answered", retry_after=1.0
            )
        try:
            answer = self.answer(wire, call)
            start = time.perf_counter()
            rows = [
                None
                if decision.verdict is Verdict.REJECT
                else self._certify(wire[row : row + 1], call)
                for row, decision in enumerate(answer.decisions)
            ]
            self._metrics.stage(self.name, "certificate", time.perf_counter() - start)
        finally:
            self._certifying.release()
        return Certified(
            [one and one[0] for one in rows] if self._bounds else [],
            [one and one[1] for one in rows] if self._smoothing else [],
        )

    def _certify(
        self, row: npt.NDArray[Any], call: Call
    ) -> tuple[Certificate | None, Certificate | None]:
        """Both kinds about one row, checking between passes that somebody still waits."""
        compiled, bounded, smoothed = self.guard.compiled, None, None
        row = np.ascontiguousarray(row)

        def classify(noisy: npt.NDArray[Any]) -> npt.NDArray[np.integer]:
            call.check()
            return compiled.smoothed(noisy)

        call.check()
        if self._bounds:
            [bounded] = interval_certificates(compiled, row, 2 * self.guard.radius)
        if self._smoothing is not None:
            rng = np.random.default_rng()
            [smoothed] = self._smoothing.certify(classify, row, self.manifest.input, rng)
        return bounded, smoothed

    def _run(self, work: list[_Rows]) -> list[Answer | Exception]:
        """Answers, or what is wrong with a request."""
        token = TRACE_CONTEXT.set(work[0].trace)
        try:
            return self._screened(work)
        finally:
            TRACE_CONTEXT.reset(token)

    def _screened(self, work: list[_Rows]) -> list[Answer | Exception]:
        start = time.perf_counter()
        # The latest: one caller's haste may not end the work of the others.
        ends = [rows.deadline for rows in work]
        deadline = None if None in ends else max(end for end in ends if end is not None)
        if len(work) == 1:
            if work[0].unchecked:
                check_values(work[0].wire, self.manifest.input, work[0].unchecked)
            answers = [self.guard.screen(work[0].wire, work[0].plans, deadline=deadline)]
        else:
            wire = np.concatenate([rows.wire for rows in work])
            if any(rows.unchecked for rows in work):
                try:
                    check_values(wire, self.manifest.input, "")
                except InvalidInput:
                    return self._run_sound(work)
            plans = [plan for rows in work for plan in rows.plans]
            whole = self.guard.screen(wire, plans, deadline=deadline)
            answers, first = [], 0
            for rows in work:
                last = first + len(rows.wire)
                answers.append(
                    Answer(whole.decisions[first:last], whole.outputs[first:last], whole.spans)
                )
                first = last
        spans = (Span("guard", start, time.perf_counter()), *answers[0].spans)
        for span in spans:
            self._metrics.stage(self.name, span.name, span.end - span.start)
        return [Answer(answer.decisions, answer.outputs, spans) for answer in answers]

    def _run_sound(self, work: list[_Rows]) -> list[Answer | Exception]:
        """Of a batch in which something is no image: what is wrong with each, or its answer."""
        wrong: list[InvalidInput | None] = []
        for rows in work:
            try:
                check_values(rows.wire, self.manifest.input, rows.unchecked)
                wrong.append(None)
            except InvalidInput as error:
                wrong.append(error)
        sound = [
            replace(rows, unchecked="")
            for rows, error in zip(work, wrong, strict=True)
            if error is None
        ]
        answers = iter(self._screened(sound) if sound else ())
        return [next(answers) if error is None else error for error in wrong]
