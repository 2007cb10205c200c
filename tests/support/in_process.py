"""A real server in the process of the test, whose work can be held."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from firewall.bundle.store import Bundle
from firewall.screening.live import LiveGuard
from firewall.screening.load import load_guard
from firewall.screening.policy import Policy
from firewall.screening.verdict import Answer
from firewall.serve.audit import Audit
from firewall.serve.auth import Authenticator
from firewall.serve.metrics import Metrics
from firewall.serve.model import ServedModel, Services
from firewall.serve.repository import ModelRepository
from firewall.serve.server import Server
from firewall.serve.settings import Settings


class HeldGuard:
    """A guard that screens when it is let go, and counts."""

    def __init__(self, guard: LiveGuard) -> None:
        self._guard = guard
        self.work = threading.Event()
        self.working = threading.Event()
        #: Rows of each batch.
        self.batches: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guard, name)

    def screen(self, wire: Any, plans: Any, *, deadline: float | None = None) -> Answer:
        self.batches.append(len(wire))
        self.working.set()
        assert self.work.wait(30)
        return self._guard.screen(wire, plans, deadline=deadline)


class HeldModel(ServedModel):
    """A model whose self-test waits to be let go as well."""

    def __init__(self, bundle: Bundle, guard: HeldGuard, **services: Any) -> None:
        super().__init__(
            bundle,
            cast(LiveGuard, guard),
            Services(Metrics(), Audit(io.StringIO()), **services),
        )
        self.held = guard
        self.test = threading.Event()

    def self_test(self) -> None:
        assert self.test.wait(30)
        super().self_test()


def held_model(bundle: Bundle, **services: Any) -> HeldModel:
    guard = load_guard(bundle, Policy(false_positive_rate=0.05))
    return HeldModel(bundle, HeldGuard(guard), **services)


def settings(**changes: Any) -> Settings:
    """Of a server on any ports of the loopback address."""
    ports = {"grpc_port": 0, "rest_port": 0, "operations_port": 0}
    return Settings.load({"host": "127.0.0.1"} | ports | changes)


def make_server(
    model: ServedModel, authenticator: Authenticator | None = None, **changes: Any
) -> Server:
    return Server(
        ModelRepository({model.name: model}),
        settings(**changes),
        Metrics(),
        authenticator=authenticator,
    )


@contextmanager
def started(
    model: HeldModel, authenticator: Authenticator | None = None, **changes: Any
) -> Iterator[Server]:
    """A server that has passed its self-test; whatever it holds is let go at the end."""
    model.test.set()
    server = make_server(model, authenticator, **changes)
    server.start()
    try:
        yield server
    finally:
        model.held.work.set()
        server.stop(5.0)


@contextmanager
def served_with(bundle: Bundle, policy: Policy, **changes: Any) -> Iterator[Server]:
    """A server of one bundle under a policy, ready."""
    services = Services(Metrics(), Audit(io.StringIO()))
    model = ServedModel(bundle, load_guard(bundle, policy), services)
    server = make_server(model, **changes)
    server.start()
    try:
        yield server
    finally:
        server.stop(5.0)
