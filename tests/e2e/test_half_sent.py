"""Calls whose message never comes."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from firewall.bundle.signing import Signer
from firewall.client import Client
from firewall.errors import Overloaded
from tests.support.served import Served, served
from tests.support.tiny import wire

#: Requests in progress from which on the server is busy, and waits less for messages.
BUSY = 48
PREDICT, HEALTH = "/firewall.v1.FirewallService/Predict", "/grpc.health.v1.Health/Check"


@pytest.fixture(scope="module")
def server(
    tiny_path: Path, signer: Signer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    with served(tiny_path, signer, tmp_path_factory.mktemp("half")) as one:
        yield one


class HalfSent:
    """Calls with headers and nothing else, for as long as it is open."""

    def __init__(self, address: str) -> None:
        self._over = threading.Event()
        self._calls: list[Any] = []
        self._channels = [
            grpc.insecure_channel(address, (("grpc.use_local_subchannel_pool", 1),))
            for _ in range(4)
        ]

    def begin(self, method: str, count: int) -> None:
        for number in range(count):
            channel = self._channels[number % len(self._channels)]
            # One that nobody holds is cancelled.
            self._calls.append(channel.stream_unary(method).future(_nothing(self._over)))

    @property
    def open(self) -> int:
        """Calls that have not ended."""
        return sum(not call.done() for call in self._calls)

    def close(self) -> None:
        self._over.set()
        for channel in self._channels:
            channel.close()


def _nothing(over: threading.Event) -> Iterator[bytes]:
    over.wait(60)
    yield from ()


@pytest.fixture
def half_sent(server: Served) -> Iterator[HalfSent]:
    one = HalfSent(server.address)
    yield one
    one.close()


def started(server: Served) -> float:
    """Calls of Predict that were begun: whose message has come, or will not."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.operations_port}/metrics") as page:
        families = text_string_to_metric_families(page.read().decode())
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "grpc_server_started_total" and sample.labels["grpc_method"] == "Predict"
    )


def settled(server: Served) -> bool:
    """Whether a request is answered well before any patience is over."""
    with Client(server.address, timeout=10) as client:
        return len(client.predict(wire(1, 50))) == 1


def test_they_keep_no_thread_from_others(server: Served, half_sent: HalfSent) -> None:
    before = started(server)
    half_sent.begin(PREDICT, 200)
    for _ in range(200):
        if started(server) - before >= BUSY:
            break
        time.sleep(0.02)
    # Most places are those of calls whose message does not come.
    assert started(server) - before >= BUSY
    refused = 0
    for _ in range(100):
        try:
            assert settled(server)
            break
        except Overloaded as error:
            # As long as the queue is full of them; a client comes again when it was told to.
            refused += 1
            time.sleep(error.retry_after)
    else:
        raise AssertionError(f"refused {refused} times")
    for _ in range(20):
        assert settled(server)
    assert half_sent.open <= BUSY


def test_nor_from_health(server: Served, half_sent: HalfSent) -> None:
    half_sent.begin(HEALTH, 30)
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for _ in range(5):
            found = stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert found.status == health_pb2.HealthCheckResponse.SERVING


def test_the_server_stops_with_some_of_them_open(
    tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    with served(tiny_path, signer, tmp_path) as server:
        half = HalfSent(server.address)
        half.begin(PREDICT, 60)
        assert settled(server)
        assert server.terminate() == 0
        half.close()
