"""How figures are written in reports, model cards and tables."""

from __future__ import annotations

from collections.abc import Sequence


def percent(share: float | None) -> str:
    """0.0123 as "1.2 %", and nothing measured as "none"."""
    return "none" if share is None else f"{100 * share:.1f} %"


def interval(bounds: Sequence[float]) -> str:
    """(0.01, 0.03) as "1.0 to 3.0 %"."""
    return f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} %"
