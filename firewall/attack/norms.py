"""Balls in which an attacker moves. A norm is three small functions; the loops know no other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from firewall.errors import ConfigError


class Norm(Protocol):
    """A ball around each row of a batch. Deltas are [N, C, H, W]."""

    @property
    def name(self) -> str:
        """As it is written in results: `linf` or `l2`."""

    def size(self, delta: Tensor) -> Tensor:
        """Norm of each row, [N]."""

    def start(self, x: Tensor, radius: float, generator: Generator) -> Tensor:
        """A random delta inside the ball, shaped like x."""

    def direction(self, gradient: Tensor) -> Tensor:
        """The step of length one that raises a loss with this gradient fastest."""

    def project(self, delta: Tensor, radius: float) -> Tensor:
        """The nearest delta inside the ball."""


@dataclass(frozen=True)
class Linf:
    """Every value moves by at most the radius."""

    name: str = "linf"

    def size(self, delta: Tensor) -> Tensor:
        """Largest absolute value of each row."""
        return delta.flatten(1).abs().amax(dim=1)

    def start(self, x: Tensor, radius: float, generator: Generator) -> Tensor:
        """Uniform in the cube."""
        noise = torch.rand(x.shape, generator=generator).to(x.device)
        return (noise * 2 - 1) * radius

    def direction(self, gradient: Tensor) -> Tensor:
        """The sign."""
        return gradient.sign()

    def project(self, delta: Tensor, radius: float) -> Tensor:
        """Clip every value."""
        return delta.clamp(-radius, radius)


@dataclass(frozen=True)
class L2:
    """The Euclidean length of the whole change is at most the radius."""

    name: str = "l2"

    def size(self, delta: Tensor) -> Tensor:
        """Euclidean length of each row."""
        length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return length

    def start(self, x: Tensor, radius: float, generator: Generator) -> Tensor:
        """Uniform in the ball: a Gaussian direction, a radius by the d-th root."""
        noise = torch.randn(x.shape, generator=generator).to(x.device)
        length = torch.rand(len(x), generator=generator).to(x.device) ** (1 / x[0].numel())
        return self.direction(noise) * _rows(length * radius)

    def direction(self, gradient: Tensor) -> Tensor:
        """The gradient at length one; zero where it vanishes."""
        length: Tensor = self.size(gradient).clamp_min(1e-12)
        return gradient / _rows(length)

    def project(self, delta: Tensor, radius: float) -> Tensor:
        """Shorten what is too long."""
        shrink: Tensor = (radius / self.size(delta).clamp_min(1e-12)).clamp_max(1.0)
        return delta * _rows(shrink)


def _rows(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def check_radius(norm: str, radius: float, flag: str = "--eps") -> None:
    """Check the radius of a ball around images with values in [0, 1].

    Args:
        norm: `linf` or `l2`.
        radius: of the ball.
        flag: by which it was given, for the error.

    Raises:
        ConfigError: it is not positive and finite, or is larger than the whole range.

    """
    if not (math.isfinite(radius) and radius > 0):
        raise ConfigError(f"{flag}: {radius}; expected a positive, finite radius")
    if norm == "linf" and radius > 1:
        raise ConfigError(
            f"{flag}: {radius:g}; expected at most 1, since images have values in [0, 1] "
            f"({radius:g}/255 is {radius / 255:.4f})"
        )


def norm_named(name: str) -> Norm:
    """`linf` or `l2`.

    Raises:
        ConfigError: another name.

    """
    for norm in (Linf(), L2()):
        if norm.name == name:
            return norm
    raise ConfigError(f"--norm: {name!r}; expected linf or l2")
