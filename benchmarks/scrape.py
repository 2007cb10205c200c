"""Metrics of a running server, read from its operations port."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

#: Seconds and count by stage.
Stages = dict[str, tuple[float, float]]
#: Histogram and label of whole calls: `ModelInfer` and the REST route of the same name.
_CALLS = {
    "grpc_server_handling_seconds": ("grpc_method", "ModelInfer"),
    "http_server_request_seconds": ("route", "/v2/models/{model}/infer"),
}


def samples(port: int) -> Iterator[Sample]:
    """Every sample of the page."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
        text = page.read().decode()
    for family in text_string_to_metric_families(text):
        yield from family.samples


def total(port: int, name: str, **labels: str) -> float:
    """A metric added up over all label values that are not named."""
    return sum(
        sample.value
        for sample in samples(port)
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def stage_seconds(port: int) -> Stages:
    """Seconds and count of each stage so far, of batches' waits as `queue`, of calls as `call`."""
    found: dict[str, dict[str, float]] = {"call": {"sum": 0.0, "count": 0.0}}
    for sample in samples(port):
        base, _, kind = sample.name.rpartition("_")
        if kind not in ("sum", "count"):
            continue
        if base == "firewall_stage_seconds":
            found.setdefault(sample.labels["stage"], {})[kind] = sample.value
        elif base == "firewall_queue_wait_seconds":
            found.setdefault("queue", {})[kind] = sample.value
        elif base in _CALLS:
            label, value = _CALLS[base]
            if sample.labels[label] == value:
                found["call"][kind] += sample.value
    return {name: (one["sum"], one["count"]) for name, one in found.items()}
