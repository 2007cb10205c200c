"""When a stage of an answer ran."""

from __future__ import annotations

from typing import NamedTuple


class Span(NamedTuple):
    """A stage and its time, in seconds of `time.perf_counter()`."""

    name: str
    start: float
    end: float
