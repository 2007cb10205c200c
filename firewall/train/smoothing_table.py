"""Certified radii by count of votes, computed once, so that a server only looks them up."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from firewall.bundle.spec import Spec
from firewall.screening.smoothing import Smoothing


class SmoothingDenoiser(Spec):
    """`[smoothing.denoiser]`: a plugin that noisy copies pass before they vote."""

    plugin: str = Field(min_length=1, max_length=128)
    config: dict[str, Any] = Field(default_factory=dict)


class SmoothingSpec(Spec):
    """`[smoothing]` of a recipe: certificates by randomised smoothing."""

    #: Standard deviation of the noise, where values lie in [0, 1].
    sigma: float = Field(default=0.25, gt=0, le=4)
    #: Noisy copies on which the class is chosen.
    selection: int = Field(default=100, ge=1, le=10_000)
    #: Noisy copies on which it is counted.
    draws: int = Field(default=1000, ge=10, le=100_000)
    #: Probability that a certificate does not hold.
    failure: float = Field(default=0.001, gt=0, lt=0.5)
    #: Of no use to anything else: it is no view of the guard.
    denoiser: SmoothingDenoiser | None = None


def tabulate(spec: SmoothingSpec) -> Smoothing:
    """Radius sigma * Phi^-1 of Clopper and Pearson's lower bound (1934), for every count."""
    from scipy.stats import beta, norm

    radii = [0.0]
    for count in range(1, spec.draws + 1):
        least = float(beta.ppf(spec.failure, count, spec.draws - count + 1))
        radii.append(spec.sigma * float(norm.ppf(least)) if least > 0.5 else 0.0)
    return Smoothing(spec.sigma, spec.selection, spec.draws, spec.failure, tuple(radii))
