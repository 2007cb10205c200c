"""Calls whose message never comes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from firewall.bundle.signing import Signer
from firewall.client import Client
from tests.support.served import Served, served
from tests.support.tiny import wire

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
        self._channels = [
            grpc.insecure_channel(address, (("grpc.use_local_subchannel_pool", 1),))
            for _ in range(4)
        ]

    def begin(self, method: str, count: int) -> None:
        for number in range(count):
            channel = self._channels[number % len(self._channels)]
            channel.stream_unary(method).future(_nothing(self._over))

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


def settled(server: Served) -> bool:
    """Whether a request is answered well before any patience is over."""
    with Client(server.address, timeout=10) as client:
        return len(client.predict(wire(1, 50))) == 1


def test_they_keep_no_thread_from_others(server: Served, half_sent: HalfSent) -> None:
    half_sent.begin(PREDICT, 200)
    for _ in range(20):
        assert settled(server)


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
