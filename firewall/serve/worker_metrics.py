"""Metrics of all workers as one page: each sample says of which worker it is."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

#: Seconds for a worker's page.
_TIMEOUT = 2.0


class WorkerMetrics(Collector):
    """Reads every worker's page when it is asked."""

    def __init__(
        self, ports: Callable[[], Iterable[tuple[int, int]]], restarts: Callable[[], int]
    ) -> None:
        """Nothing is read yet.

        Args:
            ports: number and HTTP port of each worker.
            restarts: how many were started in the place of others.

        """
        self._ports, self._restarts = ports, restarts

    def collect(self) -> Iterator[Metric]:
        """Families with the samples of all; a worker that does not answer has none."""
        families: dict[str, Metric] = {}
        count = 0
        for number, port in self._ports():
            try:
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{port}/metrics", timeout=_TIMEOUT
                ) as page:
                    text = page.read().decode()
            except OSError:
                continue
            count += 1
            for family in text_string_to_metric_families(text):
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                merged.samples += [
                    sample._replace(labels=sample.labels | {"worker": str(number)})
                    for sample in family.samples
                ]
        yield from families.values()
        yield GaugeMetricFamily("firewall_workers", "Workers that answer.", value=count)
        yield CounterMetricFamily(
            "firewall_worker_restarts",
            "Workers that were started in the place of others.",
            value=self._restarts(),
        )


def registry(
    ports: Callable[[], Iterable[tuple[int, int]]], restarts: Callable[[], int]
) -> CollectorRegistry:
    """As the HTTP port serves it."""
    made = CollectorRegistry()
    made.register(WorkerMetrics(ports, restarts))
    return made
