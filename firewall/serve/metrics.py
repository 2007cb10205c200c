"""Prometheus metrics of the server. With `operations_http`, the only module that knows prometheus.

All metrics work in prometheus_client's multiprocess mode too, so there are no callbacks and no
custom collectors. Statistics that a policy does not disclose are counted in buckets without a sum:
from a sum the exact value of one's own request could be read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from firewall.screening.verdict import Decision, Verdict

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_P_VALUES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
_P_NAMES = tuple(f"{bound:g}" for bound in _P_VALUES)
#: Changes of what is served, as `Metrics.changed` names them.
CHANGES = ("reload", "rollback", "policy", "shadow", "promote", "drop")


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        rpc = ("grpc_type", "grpc_service", "grpc_method")
        self._rpc_started = self._counter("grpc_server_started", "RPCs started.", rpc)
        self._rpc_handled = self._counter(
            "grpc_server_handled", "RPCs completed, by status.", (*rpc, "grpc_code")
        )
        self._rpc_seconds = self._histogram(
            "grpc_server_handling_seconds", "Time from headers to answer of an RPC.", rpc, _SECONDS
        )
        route = ("service", "route")
        self._http_started = self._counter(
            "http_server_requests_started", "HTTP requests started.", route
        )
        self._http_handled = self._counter(
            "http_server_requests", "HTTP requests completed, by status.", (*route, "status")
        )
        self._http_seconds = self._histogram(
            "http_server_request_seconds",
            "Time from headers to answer of an HTTP request.",
            route,
            _SECONDS,
        )
        model = ("model",)
        self._rows = self._counter(
            "firewall_rows", "Rows by verdict, or unscreened.", (*model, "verdict")
        )
        self._escalated = self._counter(
            "firewall_escalated_rows", "Rows for which the expensive tier ran.", model
        )
        self._faults = self._counter("firewall_fault_rows", "Rows on which a stage failed.", model)
        self._p_values = self._counter(
            "firewall_p_value_rows",
            "Screened rows by conformal p-value: `le` is the upper bound of the row's bucket.",
            (*model, "le"),
        )
        self._reasons = self._counter(
            "firewall_reasons", "Rows that a detector spoke against.", (*model, "detector")
        )
        self._batch = self._histogram(
            "firewall_batch_rows", "Rows of a batch.", model, (1, 2, 4, 8, 16, 32, 64, 128)
        )
        self._wait = self._histogram(
            "firewall_queue_wait_seconds",
            "Time that the first request of a batch waited.",
            model,
            _SECONDS,
        )
        self._queue = self._gauge("firewall_queue_rows", "Rows that wait.", model, "livesum")
        self._stage = self._histogram(
            "firewall_stage_seconds",
            "Time of a request or batch, by stage of the data plane.",
            (*model, "stage"),
            _SECONDS,
        )
        self._bundle = self._gauge(
            "firewall_bundle_info",
            "1 for the bundle that is live, 0 for one that was.",
            (*model, "version", "digest", "provider"),
            "livemax",
        )
        self._changes = self._counter(
            "firewall_changes",
            "Reloads, rollbacks and other changes of what is served, by result.",
            (*model, "change", "result"),
        )
        self._shadow = self._counter(
            "firewall_shadow_rows",
            "Rows that a candidate saw too, by the live verdict and the candidate's.",
            (*model, "live", "shadow"),
        )
        self._shadow_labels = self._counter(
            "firewall_shadow_label_changes",
            "Rows to which a candidate gives another class.",
            model,
        )
        self._shadow_missed = self._counter(
            "firewall_shadow_missed",
            "Requests that a candidate did not compare: dropped, or failed.",
            (*model, "why"),
        )
        self._dropped = self._counter(
            "firewall_audit_dropped", "Audit lines that could not be written.", ()
        )
        self._drift = self._gauge(
            "firewall_calibration_evidence",
            "Evidence that p-values are no longer as on calibration's inputs: 1 is an alarm.",
            model,
            "livemax",
        )
        self._quarantined = self._counter(
            "firewall_quarantine_rows",
            "Refused and flagged rows by what became of them: stored, or dropped.",
            ("state",),
        )
        self._quarantine_queue = self._gauge(
            "firewall_quarantine_queue_rows",
            "Rows that wait to be stored in quarantine.",
            (),
            "livesum",
        )
        self._ready = self._gauge(
            "firewall_ready", "1 when every model has passed its self-test.", (), "livemin"
        )
        #: Children by labels: looking one up costs more than counting.
        self._children: dict[tuple[Any, tuple[str, ...]], Any] = {}

    def _counter(self, name: str, documentation: str, labels: Sequence[str]) -> Counter:
        return Counter(name, documentation, labels, registry=self.registry)

    def _gauge(self, name: str, documentation: str, labels: Sequence[str], mode: Any) -> Gauge:
        return Gauge(name, documentation, labels, registry=self.registry, multiprocess_mode=mode)

    def _histogram(
        self, name: str, documentation: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> Histogram:
        return Histogram(name, documentation, labels, registry=self.registry, buckets=bounds)

    def _child(self, metric: Any, *labels: str) -> Any:
        key = (metric, labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def started(self, protocol: str, service: str, method: str) -> None:
        """Count a request that came in."""
        if protocol == "grpc":
            self._child(self._rpc_started, "unary", service, method).inc()
        else:
            self._child(self._http_started, service, method).inc()

    def handled(self, protocol: str, service: str, method: str, code: str, seconds: float) -> None:
        """Count a request that was answered.

        Args:
            protocol: `grpc` or `http`.
            service: as in `started`.
            method: as in `started`.
            code: name of the gRPC status, or the HTTP status.
            seconds: from headers to answer.

        """
        if protocol == "grpc":
            self._child(self._rpc_handled, "unary", service, method, code).inc()
            self._child(self._rpc_seconds, "unary", service, method).observe(seconds)
        else:
            self._child(self._http_handled, service, method, code).inc()
            self._child(self._http_seconds, service, method).observe(seconds)

    def decided(self, model: str, decision: Decision) -> None:
        """Count a row by its verdict."""
        screened = decision.p_value is not None or decision.fault
        verdict = decision.verdict.value if screened else "unscreened"
        self._child(self._rows, model, verdict).inc()
        if decision.escalated:
            self._child(self._escalated, model).inc()
        if decision.fault:
            self._child(self._faults, model).inc()
        if decision.p_value is not None:
            bucket = min(bisect_left(_P_VALUES, decision.p_value), len(_P_NAMES) - 1)
            self._child(self._p_values, model, _P_NAMES[bucket]).inc()
        if decision.verdict is not Verdict.ACCEPT:
            for reason in decision.reasons:
                self._child(self._reasons, model, reason).inc()

    def batch(self, model: str, rows: int, waited: float, queued: int) -> None:
        """Count a batch that begins; `queued` rows are left waiting."""
        self._child(self._batch, model).observe(rows)
        self._child(self._wait, model).observe(waited)
        self._child(self._queue, model).set(queued)

    def stage(self, model: str, stage: str, seconds: float) -> None:
        """Record how long a stage of the data plane took."""
        self._child(self._stage, model, stage).observe(seconds)

    def bundle(self, model: str, version: str, digest: str, provider: str) -> None:
        """Record that a bundle is live."""
        self._bundle.labels(model, version, digest[:12], provider).set(1)
        # A counter that begins with its first event has no increase then, and no alert sees it.
        self._faults.labels(model)
        for change in CHANGES:
            self._changes.labels(model, change, "refused")

    def retired(self, model: str, version: str, digest: str, provider: str) -> None:
        """Record that a bundle is no longer live."""
        self._bundle.labels(model, version, digest[:12], provider).set(0)

    def changed(self, model: str, change: str, result: str) -> None:
        """Count a change of what is served that was `done`, `unchanged` or `refused`."""
        self._changes.labels(model, change, result).inc()

    def shadowed(self, model: str, live: str, shadow: str, *, label: bool) -> None:
        """Count a row that a candidate compared; `label` says whether the classes differ."""
        self._shadow.labels(model, live, shadow).inc()
        if label:
            self._shadow_labels.labels(model).inc()

    def shadow_dropped(self, model: str) -> None:
        """Count a request left out of a comparison because the candidate is behind."""
        self._shadow_missed.labels(model, "dropped").inc()

    def shadow_failed(self, model: str) -> None:
        """Count a request on which a candidate failed."""
        self._shadow_missed.labels(model, "failed").inc()

    def audit_dropped(self) -> None:
        """Count an audit line that could not be written."""
        self._dropped.inc()

    def drift(self, model: str, evidence: float) -> None:
        """Record the evidence against calibration."""
        self._child(self._drift, model).set(evidence)

    def quarantined(self, state: str, rows: int) -> None:
        """Count rows that were `stored` or `dropped`."""
        self._quarantined.labels(state).inc(rows)

    def quarantine_queue(self, rows: int) -> None:
        """Record how many rows wait to be stored."""
        self._quarantine_queue.set(rows)

    def ready(self, ready: bool) -> None:
        """Record readiness."""
        self._ready.set(1.0 if ready else 0.0)
