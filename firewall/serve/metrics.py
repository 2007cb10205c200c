"""Prometheus metrics. The only place that knows prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from firewall.screening.verdict import Decision, Verdict
from firewall.serve.histogram import Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_P = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        rpc = ("grpc_type", "grpc_service", "grpc_method")
        self._started = Counter(
            "grpc_server_started", "RPCs started on the server.", rpc, registry=self.registry
        )
        self._handled = Counter(
            "grpc_server_handled",
            "RPCs completed on the server, by status.",
            (*rpc, "grpc_code"),
            registry=self.registry,
        )
        self._handling = self._histogram(
            "grpc_server_handling_seconds",
            "Time until the application had the answer of an RPC.",
            rpc,
            _SECONDS,
        )
        self._rows = Counter(
            "firewall_rows",
            "Rows by verdict, or unscreened.",
            ("model", "verdict"),
            registry=self.registry,
        )
        self._escalated = Counter(
            "firewall_escalated_rows",
            "Rows for which the expensive tier ran.",
            ("model",),
            registry=self.registry,
        )
        self._faults = Counter(
            "firewall_fault_rows",
            "Rows on which a stage failed.",
            ("model",),
            registry=self.registry,
        )
        self._p_value = self._histogram(
            "firewall_p_value", "Conformal p-values of screened rows.", ("model",), _P
        )
        self._reasons = Counter(
            "firewall_reasons",
            "Rows that a detector spoke against.",
            ("model", "detector"),
            registry=self.registry,
        )
        self._batch = self._histogram(
            "firewall_batch_rows", "Rows of a batch.", ("model",), (1, 2, 4, 8, 16, 32, 64, 128)
        )
        self._wait = self._histogram(
            "firewall_queue_wait_seconds",
            "Time that the first request of a batch waited.",
            ("model",),
            _SECONDS,
        )
        self._queue = Gauge(
            "firewall_queue_rows", "Rows that wait.", ("model",), registry=self.registry
        )
        self._stage = self._histogram(
            "firewall_stage_seconds",
            "Time of a request or batch, by stage of the data plane.",
            ("model", "stage"),
            _SECONDS,
        )
        self._bundle = Gauge(
            "firewall_bundle_info",
            "1 for the bundle that is live.",
            ("model", "version", "digest", "provider"),
            registry=self.registry,
        )
        self._changes = Counter(
            "firewall_changes",
            "Reloads, rollbacks and other changes of what is served, by what became of them.",
            ("model", "change", "result"),
            registry=self.registry,
        )
        self._shadow = Counter(
            "firewall_shadow_rows",
            "Rows that a candidate saw too, by the live verdict and the candidate's.",
            ("model", "live", "shadow"),
            registry=self.registry,
        )
        self._shadow_labels = Counter(
            "firewall_shadow_label_changes",
            "Rows to which a candidate gives another class.",
            ("model",),
            registry=self.registry,
        )
        self._shadow_missed = Counter(
            "firewall_shadow_missed",
            "Requests that a candidate was to see and did not: dropped, or failed.",
            ("model", "why"),
            registry=self.registry,
        )
        self._dropped = Counter(
            "firewall_audit_dropped",
            "Audit lines that could not be written.",
            registry=self.registry,
        )
        self._drift = Gauge(
            "firewall_calibration_evidence",
            "Evidence that p-values are no longer as on calibration's inputs: 1 is an alarm.",
            ("model",),
            registry=self.registry,
        )
        self._quarantined = Counter(
            "firewall_quarantine_rows",
            "Refused and flagged rows by what became of them: stored, or dropped.",
            ("state",),
            registry=self.registry,
        )
        self._quarantine_queue = Gauge(
            "firewall_quarantine_queue_rows",
            "Rows that wait to be stored in quarantine.",
            registry=self.registry,
        )
        self._ready = Gauge(
            "firewall_ready", "1 when every model has passed its self-test.", registry=self.registry
        )

        #: Counters by everything that they are labelled with: looking one up costs more than
        #: counting.
        self._counters: dict[tuple[Counter, tuple[str, ...]], Counter] = {}

    def _histogram(
        self, name: str, documentation: str, labels: tuple[str, ...], bounds: tuple[float, ...]
    ) -> Histogram:
        made = Histogram(name, documentation, labels, bounds)
        self.registry.register(made)
        return made

    def _count(self, counter: Counter, *labels: str) -> None:
        key = (counter, labels)
        found = self._counters.get(key)
        if found is None:
            found = self._counters[key] = counter.labels(*labels)
        found.inc()

    def started(self, service: str, method: str) -> None:
        """An RPC came in."""
        self._count(self._started, "unary", service, method)

    def handled(self, service: str, method: str, code: str, seconds: float) -> None:
        """An RPC was answered. `code` is the name of the gRPC status, such as OK."""
        self._count(self._handled, "unary", service, method, code)
        self._handling.at("unary", service, method).observe(seconds)

    def decided(self, model: str, decision: Decision) -> None:
        """A row got its verdict."""
        screened = decision.p_value is not None or decision.fault
        verdict = decision.verdict.value if screened else "unscreened"
        self._count(self._rows, model, verdict)
        if decision.escalated:
            self._count(self._escalated, model)
        if decision.fault:
            self._count(self._faults, model)
        if decision.p_value is not None:
            self._p_value.at(model).observe(decision.p_value)
        if decision.verdict is not Verdict.ACCEPT:
            for reason in decision.reasons:
                self._count(self._reasons, model, reason)

    def batch(self, model: str, rows: int, waited: float) -> None:
        """A batch began."""
        self._batch.at(model).observe(rows)
        self._wait.at(model).observe(waited)

    def stage(self, model: str, stage: str, seconds: float) -> None:
        """A stage of the data plane took its time."""
        self._stage.at(model, stage).observe(seconds)

    def queue(self, model: str, rows: Callable[[], float]) -> None:
        """Read the queue's depth whenever metrics are scraped."""
        self._queue.labels(model).set_function(rows)

    def bundle(self, model: str, version: str, digest: str, provider: str) -> None:
        """A bundle is live."""
        self._bundle.labels(model, version, digest[:12], provider).set(1)
        # A counter that begins with its first event has no increase then, and no alert sees it.
        self._faults.labels(model)
        for change in ("reload", "rollback", "policy", "shadow", "promote", "drop"):
            self._changes.labels(model, change, "refused")

    def retired(self, model: str, version: str, digest: str, provider: str) -> None:
        """A bundle is live no more."""
        self._bundle.remove(model, version, digest[:12], provider)

    def changed(self, model: str, change: str, result: str) -> None:
        """A reload, rollback or the like was `done`, `unchanged` or `refused`."""
        self._changes.labels(model, change, result).inc()

    def shadowed(self, model: str, live: str, shadow: str, *, label: bool) -> None:
        """A row was seen by a candidate too; `label` says whether their classes differ."""
        self._shadow.labels(model, live, shadow).inc()
        if label:
            self._shadow_labels.labels(model).inc()

    def shadow_dropped(self, model: str) -> None:
        """A request was left out of a comparison: the candidate is behind."""
        self._shadow_missed.labels(model, "dropped").inc()

    def shadow_failed(self, model: str) -> None:
        """A candidate failed on a request."""
        self._shadow_missed.labels(model, "failed").inc()

    def audit_dropped(self) -> None:
        """An audit line could not be written."""
        self._dropped.inc()

    def drift(self, model: str, evidence: Callable[[], float]) -> None:
        """Read the evidence against calibration whenever metrics are scraped."""
        self._drift.labels(model).set_function(evidence)

    def quarantined(self, state: str, rows: int) -> None:
        """Rows were `stored` or `dropped`."""
        self._quarantined.labels(state).inc(rows)

    def quarantine_queue(self, rows: Callable[[], float]) -> None:
        """Read how many rows wait whenever metrics are scraped."""
        self._quarantine_queue.set_function(rows)
        for state in ("stored", "dropped"):
            self._quarantined.labels(state)

    def ready(self, ready: bool) -> None:
        """Readiness changed."""
        self._ready.set(1.0 if ready else 0.0)
