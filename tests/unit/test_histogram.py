"""Our histogram is prometheus' own when it is read."""

from __future__ import annotations

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as Theirs

from firewall.serve.histogram import Histogram

BOUNDS = (0.001, 0.5, 1.0, 8)


def test_it_is_theirs() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    one = Histogram("seconds", "Some.", ("model", "stage"), BOUNDS)
    ours.register(one)
    other = Theirs("seconds", "Some.", ("model", "stage"), buckets=BOUNDS, registry=theirs)
    values = [*np.random.default_rng(0).exponential(1.0, 200).tolist(), *BOUNDS, 0.0, 99.0]
    for number, value in enumerate(values):
        stage = "ab"[number % 2]
        one.at("m", stage).observe(value)
        other.labels("m", stage).observe(value)

    def page(registry: CollectorRegistry) -> list[str]:
        lines = generate_latest(registry).decode().splitlines()
        # When it was made is theirs alone.
        return [line for line in lines if "_created" not in line]

    assert page(ours) == page(theirs)


def test_a_name_is_taken_once() -> None:
    registry = CollectorRegistry()
    registry.register(Histogram("seconds", "Some.", (), BOUNDS))
    try:
        registry.register(Histogram("seconds", "Others.", (), BOUNDS))
    except ValueError as error:
        assert "Duplicated" in str(error)
    else:
        raise AssertionError("registered twice")
