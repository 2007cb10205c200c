"""One served model: rows in, decisions and outputs out. Knows no protocol."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.bundle.manifest import Manifest
from firewall.bundle.store import Bundle
from firewall.errors import InvalidInput, NotReady, Overloaded, Unsupported
from firewall.screening.certificate import Certificate, interval_certificates
from firewall.screening.live import LiveGuard, Plan
from firewall.screening.load import read_selftest, read_smoothing
from firewall.screening.policy import Policy
from firewall.screening.preprocess import check_values
from firewall.screening.selftest import same_classifier
from firewall.screening.span import Span
from firewall.screening.split import SplitGuard
from firewall.screening.verdict import Answer, Verdict
from firewall.serve.audit import Audit
from firewall.serve.batcher import Batcher
from firewall.serve.context import RequestContext
from firewall.serve.metrics import Metrics
from firewall.serve.observers import (
    AuditTrail,
    DriftAlarm,
    Observer,
    Quarantine,
    QuarantineSettings,
    Subject,
    VerdictMetrics,
)
from firewall.serve.query_monitors import Memory, Monitors
from firewall.serve.shadow import Shadow
from firewall.serve.statistics import StatisticsCounter
from firewall.upstream.health import UpstreamHealth
from firewall.upstream.trace import TRACE_CONTEXT

#: Batches that wait for an upstream classifier at a time.
_UPSTREAM_LANES = 4
#: Requests for certificates that are computed at a time, by model: they cost many passes.
MAX_CERTIFYING = 2


@dataclass(frozen=True)
class Services:
    """What every model of a server shares.

    Attributes:
        metrics: of the server.
        audit: log of the server.
        batch_rows: rows of a batch, unless rows are computed in no time.
        queue_rows: rows that may wait.
        quarantine: how refused and flagged rows are kept; None keeps none.
        memory: where query monitors remember; None where no policy names any.

    """

    metrics: Metrics
    audit: Audit
    batch_rows: int = 8
    queue_rows: int = 128
    quarantine: QuarantineSettings | None = None
    memory: Memory | None = None


@dataclass(frozen=True, slots=True)
class _Work:
    """The rows of one request.

    Attributes:
        rows: [N, *input shape].
        plans: how each row is screened.
        deadline: `time.monotonic()`; None means no deadline.
        unchecked: name of the request field whose values have not been checked yet; a batch is
            checked in one go.
        trace: of the request.

    """

    rows: npt.NDArray[Any]
    plans: tuple[Plan, ...]
    deadline: float | None
    unchecked: str
    trace: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Certified:
    """Certificates of a batch, by interval bounds and by smoothing: one a row, or an empty list
    where the bundle has none of that kind. A refused row has None.
    """

    bounded: Sequence[Certificate | None]
    smoothed: Sequence[Certificate | None]


class ServedModel:
    """A bundle's guard under a policy, with everything that answering requests needs."""

    def __init__(
        self,
        bundle: Bundle,
        guard: LiveGuard,
        services: Services,
        *,
        upstream: UpstreamHealth | None = None,
    ) -> None:
        """Prepare to answer; nothing is answered before `self_test`.

        Args:
            bundle: checked.
            guard: of that bundle.
            services: of the server.
            upstream: health of an upstream classifier that another model shares; made here where
                the guard has an upstream and none is given.

        Raises:
            PluginError: a query monitor is not installed, or breaks the contract.
            ConfigError: a setting of one is wrong.

        """
        # Without its graphs, which the guard has opened.
        self._bundle = replace(
            bundle,
            files={name: data for name, data in bundle.files.items() if not name.endswith(".onnx")},
        )
        self._services = services
        self.manifest: Manifest = bundle.manifest
        self.name: str = bundle.manifest.name
        self.digest = bundle.digest
        self.labels = bundle.labels
        self.guard = guard
        #: Compares a candidate with what is answered.
        self.shadow: Shadow | None = None
        self.statistics = StatisticsCounter()
        self._selftest = read_selftest(bundle)
        self._smoothing = read_smoothing(bundle)
        self._tested = False
        self._monitors: Monitors | None = None
        if services.memory is not None and guard.policy.monitors:
            self._monitors = Monitors(
                guard.policy, self.name, bundle.manifest.input, services.memory
            )
        self.upstream = upstream
        compiled = guard.compiled
        remote = isinstance(compiled, SplitGuard) and compiled.remote
        if isinstance(compiled, SplitGuard) and compiled.remote and upstream is None:
            self.upstream = UpstreamHealth(
                compiled.classifier, lambda: same_classifier(self._selftest, compiled)
            )
        self._observers = self._make_observers()
        self._batcher: Batcher[_Work, Answer] = Batcher(
            self._run,
            # The first rows need not wait for rows that are computed after them.
            batch_rows=min(services.batch_rows, compiled.rows_at_once),
            queue_rows=services.queue_rows,
            lanes=_UPSTREAM_LANES if remote else 1,
            on_batch=self._on_batch,
        )
        self._certifying = threading.BoundedSemaphore(MAX_CERTIFYING)

    def _make_observers(self) -> tuple[Observer, ...]:
        services = self._services
        subject = Subject(self.name, self.manifest.version, self.digest, self.guard)
        observers: list[Observer] = [
            VerdictMetrics(subject, services.metrics),
            AuditTrail(subject, services.audit),
            DriftAlarm(subject, services.metrics, services.audit),
        ]
        if services.quarantine is not None:
            observers.append(Quarantine(subject, services.quarantine))
        return tuple(observers)

    def go_live(self) -> None:
        """Publish this model's metrics."""
        self._services.metrics.drift(self.name, 0.0)
        self._services.metrics.bundle(
            self.name, self.manifest.version, self.digest, self.guard.compiled.provider
        )

    def retire(self) -> None:
        """Mark this model's bundle as no longer live."""
        self._services.metrics.retired(
            self.name, self.manifest.version, self.digest, self.guard.compiled.provider
        )

    def with_policy(self, policy: Policy) -> ServedModel:
        """Serve the same graphs under another policy; ready when this model is.

        Raises:
            ConfigError: the policy asks for what the bundle does not have.
            CalibrationError: the policy asks for a rate that cannot be promised.

        """
        other = ServedModel(
            self._bundle, self.guard.with_policy(policy), self._services, upstream=self.upstream
        )
        other._tested = self._tested
        other.statistics = self.statistics
        return other

    @property
    def ready(self) -> bool:
        """Whether the self-test has passed and the upstream classifier, if any, can be asked."""
        return self._tested and (self.upstream is None or self.upstream.up)

    def self_test(self) -> None:
        """Compare this machine's results with those that the bundle recorded.

        Raises:
            ParityError: this machine computes something else.

        """
        self._selftest.run(self.guard.compiled)
        self._tested = True
        if self.upstream is not None:
            self.upstream.start()

    @property
    def backlog_seconds(self) -> float:
        """Seconds that the waiting rows will take."""
        return self._batcher.backlog_seconds

    @property
    def queued_rows(self) -> int:
        """Rows that wait for the guard."""
        return self._batcher.queued_rows

    def close(self) -> None:
        """Close the connection to the upstream classifier, if any."""
        if self.upstream is not None:
            self.upstream.stop()

    def answer(
        self, rows: npt.NDArray[Any], context: RequestContext, unchecked: str = ""
    ) -> Answer:
        """Screen the rows of a request, together with whatever else waits.

        Args:
            rows: [N, *input shape].
            context: of the request.
            unchecked: name of the request field that holds the rows, where their values have not
                been checked yet.

        Raises:
            FirewallError: not ready, overloaded, late, or values that are no image's.

        """
        work = self._begin(rows, context, unchecked)
        start = time.perf_counter()
        try:
            return self._finish(
                work, self._batcher.submit(work, len(rows), context), context, start
            )
        except Exception:
            self.statistics.failed(time.perf_counter() - start)
            raise

    def answer_later(
        self,
        rows: npt.NDArray[Any],
        context: RequestContext,
        unchecked: str,
        on_done: Callable[[Answer | Exception], None],
    ) -> None:
        """Screen the rows of a request as `answer` does, without waiting.

        Args:
            rows: [N, *input shape].
            context: of the request.
            unchecked: as in `answer`.
            on_done: called from another thread with the answer, or with what `answer` would raise.

        Raises:
            FirewallError: not ready, overloaded, or late already.

        """
        work = self._begin(rows, context, unchecked)
        start = time.perf_counter()

        def finish(outcome: Answer | Exception) -> None:
            if not isinstance(outcome, Exception):
                try:
                    outcome = self._finish(work, outcome, context, start)
                except Exception as error:
                    outcome = error
            if isinstance(outcome, Exception):
                self.statistics.failed(time.perf_counter() - start)
            on_done(outcome)

        self._batcher.enqueue(work, len(rows), context, finish)

    @property
    def answers_at_once(self) -> bool:
        """Whether what follows a batch never waits: no query monitor asks a store."""
        return self._monitors is None

    def _begin(self, rows: npt.NDArray[Any], context: RequestContext, unchecked: str) -> _Work:
        if not self._tested:
            raise NotReady(f"model {self.name!r} has not passed its self-test yet")
        if not self.ready:
            raise NotReady(f"model {self.name!r}: the classifier behind it cannot be asked")
        context.charge(len(rows))
        plan = self.guard.plan(context.client)
        return _Work(rows, (plan,) * len(rows), context.deadline, unchecked, context.trace)

    def _finish(self, work: _Work, answer: Answer, context: RequestContext, start: float) -> Answer:
        """Ask the query monitors, and tell the observers."""
        rows, spans = work.rows, context.spans
        spans.append(Span("queue", start, max(start, answer.spans[0].start)))
        if self._monitors is not None:
            asked = time.perf_counter()
            answer = self._monitors.look(rows, answer, context.client)
            spans.append(Span("monitors", asked, time.perf_counter()))
            self._services.metrics.stage(self.name, "monitors", spans[-1].end - asked)
        spans += answer.spans
        self.statistics.answered(len(rows), time.perf_counter() - start, spans)
        for observer in self._observers:
            observer.observe(rows, answer, context)
        # Read once: it may be dropped meanwhile.
        if (shadow := self.shadow) is not None:
            shadow.observe(rows, answer, context)
        return answer

    def decoded(self, seconds: float) -> None:
        """Record how long the encoded images of a request took to decode."""
        self._services.metrics.stage(self.name, "decode", seconds)

    def check_certifies(self) -> None:
        """Refuse to certify where the bundle or the policy does not.

        Raises:
            Unsupported: the classifier cannot be bounded, or at no known radius, and the bundle
                does not smooth; or the policy forbids certificates.

        """
        if not self.guard.policy.certificates or (not self._bounds and self._smoothing is None):
            raise Unsupported(f"model {self.name!r} issues no certificates")

    def certify(self, rows: npt.NDArray[Any], context: RequestContext) -> Certified:
        """Screen rows, and certify those that are not refused.

        Args:
            rows: [N, *input shape], validated.
            context: of the request.

        Raises:
            Overloaded: enough requests for certificates are in progress.
            FirewallError: as `answer`.

        """
        if not self._certifying.acquire(blocking=False):
            raise Overloaded(
                f"{MAX_CERTIFYING} requests for certificates are in progress", retry_after=1.0
            )
        try:
            answer = self.answer(rows, context)
            start = time.perf_counter()
            pairs = [
                None
                if decision.verdict is Verdict.REJECT
                else self._certify(rows[row : row + 1], context)
                for row, decision in enumerate(answer.decisions)
            ]
            self._services.metrics.stage(self.name, "certificate", time.perf_counter() - start)
        finally:
            self._certifying.release()
        return Certified(
            [pair and pair[0] for pair in pairs] if self._bounds else [],
            [pair and pair[1] for pair in pairs] if self._smoothing else [],
        )

    @property
    def _bounds(self) -> bool:
        return self.guard.compiled.certifies and self.guard.radius > 0

    def _certify(
        self, row: npt.NDArray[Any], context: RequestContext
    ) -> tuple[Certificate | None, Certificate | None]:
        """Certify one row in both ways, checking between passes that somebody still waits."""
        compiled, bounded, smoothed = self.guard.compiled, None, None
        row = np.ascontiguousarray(row)

        def classify(noisy: npt.NDArray[Any]) -> npt.NDArray[np.integer]:
            context.check()
            return compiled.smoothed(noisy)

        context.check()
        if self._bounds:
            [bounded] = interval_certificates(compiled, row, 2 * self.guard.radius)
        if self._smoothing is not None:
            rng = np.random.default_rng()
            [smoothed] = self._smoothing.certify(classify, row, self.manifest.input, rng)
        return bounded, smoothed

    def _on_batch(self, rows: int, waited: float, queued: int) -> None:
        self.statistics.batch()
        self._services.metrics.batch(self.name, rows, waited, queued)

    def _run(self, works: list[_Work]) -> list[Answer | Exception]:
        """Answer a batch, or say for each request what is wrong with it."""
        token = TRACE_CONTEXT.set(works[0].trace)
        try:
            return self._screen(works)
        finally:
            TRACE_CONTEXT.reset(token)

    def _screen(self, works: list[_Work]) -> list[Answer | Exception]:
        start = time.perf_counter()
        # The latest: one caller's short deadline may not end the work of the others.
        deadlines = [work.deadline for work in works]
        deadline = None if None in deadlines else max(end for end in deadlines if end is not None)
        if len(works) == 1:
            [work] = works
            if work.unchecked:
                check_values(work.rows, self.manifest.input, work.unchecked)
            answers = [self.guard.screen(work.rows, work.plans, deadline=deadline)]
        else:
            rows = np.concatenate([work.rows for work in works])
            if any(work.unchecked for work in works):
                try:
                    check_values(rows, self.manifest.input, "")
                except InvalidInput:
                    return self._screen_valid(works)
            plans = [plan for work in works for plan in work.plans]
            whole = self.guard.screen(rows, plans, deadline=deadline)
            answers, first = [], 0
            for work in works:
                last = first + len(work.rows)
                answers.append(whole.part(first, last))
                first = last
        spans = (Span("guard", start, time.perf_counter()), *answers[0].spans)
        for span in spans:
            self._services.metrics.stage(self.name, span.name, span.end - span.start)
        return [replace(answer, spans=spans) for answer in answers]

    def _screen_valid(self, works: list[_Work]) -> list[Answer | Exception]:
        """Answer the valid requests of a batch, and give the error of each invalid one."""
        errors: list[InvalidInput | None] = []
        for work in works:
            try:
                check_values(work.rows, self.manifest.input, work.unchecked)
                errors.append(None)
            except InvalidInput as error:
                errors.append(error)
        valid = [
            replace(work, unchecked="")
            for work, error in zip(works, errors, strict=True)
            if error is None
        ]
        answers = iter(self._screen(valid) if valid else ())
        return [next(answers) if error is None else error for error in errors]
