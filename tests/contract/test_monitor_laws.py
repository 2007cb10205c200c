"""Every installed monitor keeps every law, and each law can be broken."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
from pydantic import ConfigDict

from firewall.monitors import API_VERSION, MonitorConfig, Seen, Store
from firewall.monitors.registry import MonitorRegistry
from firewall.monitors.testing import MONITOR_LAWS

NAMES = MonitorRegistry.discover().names()


@pytest.mark.parametrize("law", MONITOR_LAWS)
@pytest.mark.parametrize("name", NAMES)
def test_law(law: str, name: str) -> None:
    MONITOR_LAWS[law](MonitorRegistry.discover().load(name))


class Counting:
    """Keeps every law: how many rows a client has sent, by the store's lists."""

    api_version: ClassVar[int] = API_VERSION

    class Config(MonitorConfig):
        seconds: float = 60.0

    def __init__(self, config: Any, store: Store, secret: bytes) -> None:
        self.config, self.store, self.count = config, store, 0

    def observe(self, seen: Seen) -> Any:
        return np.array([self._one(row) for row in range(len(seen.images))], np.float64)

    def _one(self, row: int) -> float:
        before = self.store.exchange([1], 0, seconds=self.config.seconds, most=8)[0]
        [now] = self.store.exchange([2], len(before), seconds=self.config.seconds, most=8)
        return float(len(now))


class NotFinite(Counting):
    def _one(self, row: int) -> float:
        return float("nan")


class Changes(Counting):
    def observe(self, seen: Seen) -> Any:
        seen.images[:] = 0
        return super().observe(seen)


class LooksAhead(Counting):
    def observe(self, seen: Seen) -> Any:
        return np.full(len(seen.images), float(len(seen.images)))


class OfItsOwn(Counting):
    def _one(self, row: int) -> float:
        self.count += 1
        return float(self.count)


class Draws(Counting):
    def _one(self, row: int) -> float:
        return float(np.random.default_rng().random())


class Lossy(Counting):
    class Config(MonitorConfig):
        model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")
        seconds: float = float("inf")


class Lax(Counting):
    class Config(MonitorConfig):
        model_config = ConfigDict(frozen=True, extra="ignore")


def test_a_good_one_keeps_them_all() -> None:
    for law in MONITOR_LAWS.values():
        law(Counting)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("law", "plugin"),
    [
        ("finite", NotFinite),
        ("inputs_unchanged", Changes),
        ("rows_in_order", LooksAhead),
        ("state_in_the_store", OfItsOwn),
        ("deterministic", Draws),
        ("config_round_trip", Lossy),
        ("unknown_key_refused", Lax),
    ],
)
def test_each_law_catches_one_that_breaks_it(law: str, plugin: Any) -> None:
    with pytest.raises((AssertionError, ValueError)):
        MONITOR_LAWS[law](plugin)
