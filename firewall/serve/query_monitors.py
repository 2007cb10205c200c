"""Query monitors of a model, whose scores take part in the verdicts."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.bundle.spec import InputSpec
from firewall.monitors.contract import Monitor, Seen
from firewall.monitors.registry import MonitorRegistry
from firewall.monitors.store import Store
from firewall.screening.policy import MonitorSpec, Policy
from firewall.screening.verdict import FAULT, Answer, Decision, Verdict
from firewall.screening.wire_pixels import pixels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Memory:
    """What monitors need besides their configuration.

    Attributes:
        registry: the monitors that are installed.
        store: where they remember.
        secret: 32 bytes that no client knows; replicas that share a store share it too.
        pseudonym: of clients.

    """

    registry: MonitorRegistry
    store: Store
    secret: bytes
    pseudonym: Callable[[str], str] = lambda client: client


class Monitors:
    """The query monitors that a policy names."""

    def __init__(self, policy: Policy, model: str, spec: InputSpec, memory: Memory) -> None:
        """Build every monitor.

        Args:
            policy: that names them.
            model: name of the model.
            spec: of its input.
            memory: where they remember.

        Raises:
            PluginError: one is not installed, or breaks the contract.
            ConfigError: a setting of one is wrong.

        """
        self._policy, self._model, self._spec, self._memory = policy, model, spec, memory
        self._monitors: list[tuple[MonitorSpec, Monitor]] = [
            (
                one,
                memory.registry.build(
                    one.plugin, one.config, memory.store,
                    # Each remembers on its own, beside others and for other models.
                    _derived(memory.secret, f"{model} {one.name}"),
                ),
            )
            for one in policy.monitors
        ]  # fmt: skip

    def look(self, wire: npt.NDArray[Any], answer: Answer, client: str) -> Answer:
        """Score the rows of an answer; rows at or over a threshold are refused as well, or flagged.

        Rows that are not screened are not looked at. A monitor that fails is a fault of the rows,
        and the policy's `on_fault` decides; one that only watches changes nothing then.

        Args:
            wire: [N, *input shape], validated.
            answer: of the guard.
            client: whose request it is.

        """
        if not self._monitors:
            return answer
        active = self._policy.active(
            tuple(spec.name for spec, _ in self._monitors), self._model, client
        )
        rows = np.array(
            [n for n, one in enumerate(answer.decisions) if one.p_value is not None or one.fault]
        )
        if not active or not len(rows):
            return answer
        seen = Seen(
            client=self._memory.pseudonym(client),
            images=pixels(wire[rows], self._spec),
            outputs=answer.log_probabilities[rows],
        )
        decisions = list(answer.decisions)
        for spec, monitor in self._monitors:
            if spec.name not in active:
                continue
            scores = self._scores(spec.name, monitor, seen)
            for place, row in enumerate(rows):
                decisions[row] = self._decided(
                    decisions[row], spec, None if scores is None else float(scores[place])
                )
        return replace(answer, decisions=tuple(decisions))

    def _scores(self, name: str, monitor: Monitor, seen: Seen) -> npt.NDArray[Any] | None:
        """Scores [N] of one monitor, checked; None for a fault."""
        try:
            scores = np.asarray(monitor.observe(seen), np.float64)
        except Exception as error:  # whatever a plugin raises
            log.error("monitor %s failed: %s", name, error)
            return None
        if scores.shape != (len(seen.images),) or not np.isfinite(scores).all():
            log.error("monitor %s gave %s for %d rows", name, scores.shape, len(seen.images))
            return None
        return scores

    def _decided(self, decision: Decision, spec: MonitorSpec, score: float | None) -> Decision:
        watches = self._policy.watches(spec)
        refused = Verdict.FLAG if watches else Verdict.REJECT
        if score is None:
            if self._policy.on_fault == "accept" or spec.mode == "monitor":
                return decision
            return replace(decision, verdict=refused, reasons=(FAULT,))
        decision = replace(decision, statistics={**decision.statistics, spec.name: score})
        if score < spec.threshold or decision.fault:
            return decision
        if watches and decision.verdict is Verdict.REJECT:
            # What only watches takes nothing back.
            return replace(decision, reasons=(*decision.reasons, spec.name))
        return replace(decision, verdict=refused, reasons=(spec.name, *decision.reasons))


def _derived(secret: bytes, name: str) -> bytes:
    return hashlib.blake2b(name.encode(), key=secret, digest_size=32).digest()
