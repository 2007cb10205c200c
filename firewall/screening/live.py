"""A guard that decides: compiled graphs, calibration and policy together. Imports no torch."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.errors import (
    Cancelled,
    ConfigError,
    DeadlineExceeded,
    FirewallError,
    NotReady,
    Overloaded,
    StageFault,
    UpstreamError,
)
from firewall.screening.calibration import Calibration, Cascade
from firewall.screening.compiled import CheapResult, GuardGraphs
from firewall.screening.policy import Policy
from firewall.screening.scores import Scores, log_softmax
from firewall.screening.span import Span
from firewall.screening.verdict import FAULT, UNCERTIFIED, Answer, Decision, Verdict

log = logging.getLogger(__name__)

#: Failures of a classifier that is served elsewhere: the request fails as they say.
_NOT_ANSWERED = (UpstreamError, NotReady, Overloaded, DeadlineExceeded, Cancelled)
#: A detector is named as a reason when its own p-value is at most this.
REASON_P = 0.05


@dataclass(frozen=True)
class Plan:
    """How the rows of one request are screened. `cascade` None: they are not."""

    cascade: Cascade | None


@dataclass(frozen=True)
class _Batch:
    """Of one call of `screen`; `decisions`, `logits` and `spans` are filled in."""

    wire: npt.NDArray[Any]
    cheap: CheapResult
    finite: list[bool]
    decisions: list[Decision | None]
    logits: npt.NDArray[np.float32]
    spans: list[Span]


class LiveGuard:
    """Immutable. A change of policy or bundle makes a new one."""

    def __init__(
        self,
        compiled: GuardGraphs,
        calibration: Calibration,
        policy: Policy,
        *,
        model: str,
        log_outputs: bool,
        scores: Scores | None = None,
        radius: float = 0.0,
        promised_rate: float | None = None,
    ) -> None:
        """Check that the policy can be kept by this guard.

        Args:
            compiled: the graphs.
            calibration: of those graphs.
            policy: what the operator wants.
            model: name under which exclusions speak of it.
            log_outputs: whether accepted rows are answered what an ensemble says, or what the
                classifier says.
            scores: how the classifier answers; None where it answers logits.
            radius: L-infinity that the bundle is meant for; 0 where it names none.
            promised_rate: of false positives, for which the bundle was made; None where it names
                none.

        Raises:
            ConfigError: the policy asks for what the bundle does not have.
            CalibrationError: the policy asks for a rate that cannot be promised.

        """
        #: As the operator gave it, which another bundle may be opened with.
        self.operator_policy = policy
        policy = policy.for_bundle(promised_rate)
        self._promised_rate = promised_rate
        if policy.paranoia == 3 and not calibration.guard_model:
            raise ConfigError(
                "paranoia: 3 needs a second network in the bundle, and this one has none; use 1 or "
                "2, or for the default classifier `firewall bundle default --witness`"
            )
        if policy.paranoia == 4 and not compiled.certifies:
            raise ConfigError(
                "paranoia: 4 needs certificates, which this bundle does not carry; use 1 or 2"
            )
        self.radius = radius
        self.certified_radius = policy.certified_radius or radius / 2
        if policy.paranoia == 4 and not self.certified_radius:
            raise ConfigError(
                "certified_radius: missing; the bundle is meant for no L-infinity radius of which "
                "half could be taken"
            )
        twice = {monitor.name for monitor in policy.monitors} & {*calibration.detectors}
        if twice:
            raise ConfigError(
                f"monitors: {min(twice)!r} is the name of a detector of this bundle; take another"
            )
        unknown = [
            exclusion
            for exclusion in policy.exclusions
            if exclusion.detector is not None
            and exclusion.detector
            not in {*calibration.detectors, *(monitor.name for monitor in policy.monitors)}
        ]
        if unknown:
            raise ConfigError(
                f"exclusion {unknown[0].id!r}: detector {unknown[0].detector!r} is not in this "
                f"bundle, which has {', '.join(calibration.detectors)}"
            )
        self.compiled = compiled
        self.calibration = calibration
        self.policy = policy
        self.model = model
        self._log_outputs = log_outputs
        self._scores = scores
        self._cascades: dict[frozenset[str], Cascade] = {}
        #: Of every client, where no exclusion tells them apart.
        self._plain: Plan | None = None
        if policy.mode != "off":
            self._cascade(frozenset(calibration.up_to(policy.paranoia)))
            for exclusion in policy.exclusions:
                # Made now: an exclusion that leaves nothing active fails at start, not in a call.
                self._active_cascade(exclusion.client or "")
            if not policy.exclusions:
                self._plain = Plan(self._active_cascade(""))

    def with_policy(self, policy: Policy) -> LiveGuard:
        """The same graphs under another policy; errors as when it is made."""
        return LiveGuard(
            self.compiled,
            self.calibration,
            policy,
            model=self.model,
            log_outputs=self._log_outputs,
            scores=self._scores,
            radius=self.radius,
            promised_rate=self._promised_rate,
        )

    def plan(self, client: str) -> Plan:
        """How a request of a client is screened; draws the sample."""
        if self.policy.sample < 100 and random.random() * 100 >= self.policy.sample:
            return Plan(None)
        return self._plain or Plan(self._active_cascade(client))

    def screen(
        self, wire: npt.NDArray[Any], plans: Sequence[Plan], *, deadline: float | None = None
    ) -> Answer:
        """Decide a batch.

        A stage that fails is a fault of its rows and never an absence: the policy's `on_fault`
        decides. Where the classifier's own pass fails there is nothing to answer, and it raises.

        Args:
            wire: [N, *input shape] of the wire's datatype, validated.
            plans: one a row.
            deadline: `time.monotonic()` by which the answer is due; a classifier elsewhere is told.

        """
        spans: list[Span] = []
        start = time.perf_counter()
        try:
            cheap = self.compiled.cheap(wire, deadline)
        except FirewallError:
            # A classifier elsewhere has said why.
            raise
        except Exception:
            # Without the classifier's own pass there is nothing to answer, whatever the policy.
            log.exception("the cheap tier failed on a batch of %d", len(wire))
            raise
        spans.append(Span("cheap", start, time.perf_counter()))
        if cheap.asked is not None:
            spans.append(cheap.asked)
        decisions: list[Decision | None] = [None] * len(wire)
        finite = finite_rows(cheap.logits)
        logits = cheap.logits
        if self._log_outputs:
            logits = log_softmax(logits, finite=all(finite))
        by_cascade: dict[int, tuple[Cascade | None, list[int]]] = {}
        for row, plan in enumerate(plans):
            by_cascade.setdefault(id(plan.cascade), (plan.cascade, []))[1].append(row)
        for cascade, rows in by_cascade.values():
            if cascade is None:
                for row in rows:
                    decisions[row] = Decision(Verdict.ACCEPT)
            else:
                self._decide(_Batch(wire, cheap, finite, decisions, logits, spans), rows, cascade)
        self._demand_certificates(wire, logits, plans, decisions, spans)
        done = tuple(decision for decision in decisions if decision is not None)
        return self._answer(done, cheap, logits, tuple(spans))

    def _answer(
        self,
        decisions: tuple[Decision, ...],
        cheap: CheapResult,
        logits: npt.NDArray[np.float32],
        spans: tuple[Span, ...],
    ) -> Answer:
        """What is answered, in the classifier's own terms, as far as the policy discloses it."""
        if self.policy.outputs != "full":
            hardened = self._harden(logits)
            return Answer(decisions, self._in_own_terms(hardened), hardened, spans=spans)
        if self._log_outputs:
            return Answer(decisions, self._in_own_terms(logits), logits, cheap.others, spans)
        own = logits if cheap.answers is None else cheap.answers
        return Answer(decisions, own, logits, cheap.others, spans)

    def _in_own_terms(self, log_probabilities: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        return (
            log_probabilities if self._scores is None else self._scores.answers(log_probabilities)
        )

    def _decide(self, batch: _Batch, rows: list[int], cascade: Cascade) -> None:
        """Fill in `decisions` and, where the expensive tier answers, `logits` of the rows."""
        rule = cascade.rule
        said = batch.cheap.logits.argmax(axis=1).tolist() if rule.asks_class else None
        every = batch.cheap.statistics.tolist()
        doubts: dict[int, float] = {}
        escalated: list[int] = []
        for row in rows:
            statistics = every[row]
            if not (batch.finite[row] and all(isfinite(statistics[n]) for n in rule.cheap_places)):
                batch.decisions[row] = self._faulted()
                continue
            doubt = rule.doubt(statistics)
            doubts[row] = doubt
            if doubt >= rule.threshold:
                escalated.append(row)
        seen = self._escalate(batch, escalated, cascade, every) if escalated else {}
        for row, doubt in doubts.items():
            if batch.decisions[row] is not None:
                # The expensive tier failed on it.
                continue
            statistics = seen.get(row)
            score = rule.score(doubt, statistics)
            p_value = rule.p_value(score, said[row] if said is not None else 0)
            rejected = p_value <= cascade.rate
            known = every[row] if statistics is None else statistics
            places = rule.cheap_places if statistics is None else rule.places
            batch.decisions[row] = Decision(
                verdict=self._verdict(rejected),
                reasons=self._reasons(cascade, np.array([known])) if rejected else (),
                p_value=p_value,
                score=score,
                statistics={self.calibration.detectors[n]: known[n] for n in places},
                escalated=statistics is not None,
            )

    def _escalate(
        self, batch: _Batch, rows: list[int], cascade: Cascade, cheap: list[list[float]]
    ) -> dict[int, list[float]]:
        """All statistics of the rows, by row; of one on which a stage failed the fault's decision.

        Args:
            batch: whose rows they are.
            rows: to run the expensive tier for.
            cascade: by which it matters what failed.
            cheap: statistics of every row.

        """
        start = time.perf_counter()
        try:
            second = self.compiled.expensive(batch.wire, batch.cheap, np.array(rows))
            width, more = batch.cheap.statistics.shape[1], second.statistics.shape[1]
            if width + more != len(self.calibration.detectors):
                raise StageFault(
                    f"{width} and {more} statistics of the tiers; calibration has "
                    f"{len(self.calibration.detectors)}"
                )
        except _NOT_ANSWERED:
            # A classifier elsewhere answers nothing about the views: no verdict, and no answer.
            raise
        except Exception:
            log.exception("the expensive tier failed on %d rows", len(rows))
            for row in rows:
                batch.decisions[row] = self._faulted()
            return {}
        finally:
            batch.spans.append(Span("expensive", start, time.perf_counter()))
        sound = finite_rows(second.log_probabilities)
        seen: dict[int, list[float]] = {}
        for n, (row, found) in enumerate(zip(rows, second.statistics.tolist(), strict=True)):
            whole = cheap[row] + found
            counted = (whole[place] for place in cascade.rule.places if place >= width)
            if not (sound[n] and all(map(isfinite, counted))):
                batch.decisions[row] = self._faulted()
                continue
            seen[row] = whole
            if self._log_outputs:
                batch.logits[row] = second.log_probabilities[n]
        return seen

    def _demand_certificates(
        self,
        wire: npt.NDArray[Any],
        logits: npt.NDArray[np.float32],
        plans: Sequence[Plan],
        decisions: list[Decision | None],
        spans: list[Span],
    ) -> None:
        """Under paranoia 4, take back what is accepted and carries no certificate of its class."""
        if self.policy.paranoia < 4:
            return
        rows = np.array(
            [
                row
                for row, decision in enumerate(decisions)
                if plans[row].cascade is not None
                and decision is not None
                and decision.verdict is Verdict.ACCEPT
            ],
            np.intp,
        )
        if not len(rows):
            return
        radius = np.full(len(rows), self.certified_radius, np.float32)
        start = time.perf_counter()
        try:
            label, lead = self.compiled.certify(np.ascontiguousarray(wire[rows]), radius)
        except Exception:
            log.exception("certification failed on %d rows", len(rows))
            for row in rows:
                decisions[row] = self._faulted()
            return
        spans.append(Span("certificate", start, time.perf_counter()))
        # NaN certifies nothing.
        held = (lead > 0) & (label == logits[rows].argmax(axis=1))
        for row in rows[~held]:
            found = decisions[row]
            assert found is not None
            decisions[row] = replace(found, verdict=self._verdict(True), reasons=(UNCERTIFIED,))

    def _verdict(self, rejected: bool) -> Verdict:
        if not rejected:
            return Verdict.ACCEPT
        return Verdict.FLAG if self.policy.mode == "monitor" else Verdict.REJECT

    def _faulted(self) -> Decision:
        if self.policy.on_fault == "accept":
            return Decision(Verdict.ACCEPT, reasons=(FAULT,))
        return Decision(self._verdict(True), reasons=(FAULT,))

    def _reasons(self, cascade: Cascade, statistics: npt.NDArray[np.float64]) -> tuple[str, ...]:
        columns = cascade.active_columns(statistics.shape[1])
        p = cascade.detector_p_values(statistics)[0, columns]
        order = np.argsort(p, kind="stable")
        named = [n for n in order if p[n] <= REASON_P] or [order[0]]
        return tuple(self.calibration.detectors[columns[n]] for n in named)

    def _harden(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Log-probabilities of the coarser distribution that the policy's `outputs` asks for."""
        log_probabilities = logits if self._log_outputs else log_softmax(logits)
        probabilities = np.exp(log_probabilities.astype(np.float64))
        every = np.arange(len(probabilities))
        top = probabilities.argmax(axis=1)
        if self.policy.outputs == "rounded":
            coarse = np.round(probabilities, 2)
            # Rounding must not change the answer: the top class stays ahead of what it ties with.
            coarse[every, top] += 2e-3
        else:
            coarse = np.zeros_like(probabilities)
            coarse[every, top] = 0.99
        # What rounding took lies evenly on the classes that are left with nothing.
        nothing = coarse <= 0
        left = np.maximum(1.0 - coarse.sum(axis=1), 1e-3) / np.maximum(nothing.sum(axis=1), 1)
        left = np.minimum(left, 0.5 * coarse[every, top])
        coarse = np.where(nothing, left[:, None], coarse)
        hardened = np.log(coarse / coarse.sum(axis=1, keepdims=True))
        return np.asarray(hardened, np.float32)

    def _active_cascade(self, client: str) -> Cascade | None:
        counted = self.calibration.up_to(self.policy.paranoia)
        active = self.policy.active(counted, self.model, client)
        return None if active is None else self._cascade(active)

    def _cascade(self, active: frozenset[str]) -> Cascade:
        found = self._cascades.get(active)
        if found is None:
            found = self.calibration.cascade(self.policy.false_positive_rate, active)
            self._cascades[active] = found
        return found


def finite_rows(array: npt.NDArray[np.float32]) -> list[bool]:
    """Which rows of [N, K] are finite."""
    found: list[bool] = np.asarray(np.isfinite(array).all(axis=1), np.bool_).tolist()
    return found
