"""Metrics of all workers as one page, by prometheus_client's multiprocess mode."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead


class SupervisorMetrics:
    """The workers' metrics added up, and the supervisor's own."""

    def __init__(self, folder: Path) -> None:
        """Collect from a folder.

        Args:
            folder: where the workers write; `PROMETHEUS_MULTIPROC_DIR` names it.

        """
        self._folder = str(folder)
        self.registry = CollectorRegistry()
        MultiProcessCollector(self.registry, path=self._folder)  # type: ignore[no-untyped-call]
        own = CollectorRegistry()
        self._workers = Gauge(
            "firewall_workers", "Workers that are ready.", registry=own,
            multiprocess_mode="mostrecent",
        )  # fmt: skip
        self._restarts = Gauge(
            "firewall_worker_restarts", "Workers that were started in the place of others.",
            registry=own, multiprocess_mode="mostrecent",
        )  # fmt: skip

    def changed(self, workers: int, restarts: int, event: str, pid: int) -> None:
        """Record how many workers run; the gauges of one that ended are dropped."""
        if event == "worker ended":
            mark_process_dead(pid, self._folder)  # type: ignore[no-untyped-call]
        self._workers.set(workers)
        self._restarts.set(restarts)
