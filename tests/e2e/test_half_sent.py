"""gRPC calls whose message never comes, or whose answer is never taken."""

from __future__ import annotations

import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from firewall.bundle.signing import Signer
from firewall.client import Client
from firewall.errors import Overloaded
from tests.support import http2_frames as http2
from tests.support.grpc_floods import CHECK, PREDICT
from tests.support.served import Served, served
from tests.support.tiny import wire

#: Calls that a connection may have open.
STREAMS = 100
SAME, OTHER = "127.0.0.1", "127.0.0.2"


@pytest.fixture(scope="module")
def half_served(
    tiny_path: Path, signer: Signer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    with served(
        tiny_path, signer, tmp_path_factory.mktemp("half"), "--false-positive-rate", "0.05"
    ) as running:
        yield running


class Attacker:
    """Connections from one address, whose calls are begun by hand."""

    def __init__(self, server: Served, address: str) -> None:
        self._server, self._address = server, address
        self.connections: list[socket.socket] = []

    def begin(
        self, path: str, calls: int, message: bytes = b"", settings: dict[int, int] | None = None
    ) -> None:
        """Begin calls, and send a message where one is given."""
        for first in range(0, calls, STREAMS):
            connection = socket.create_connection(
                (SAME, self._server.grpc_port), timeout=20, source_address=(self._address, 0)
            )
            self.connections.append(connection)
            blocks = http2.HeaderBlocks(http2.call_fields(path))
            frames = [http2.PREFACE, http2.settings(settings)]
            for stream in range(1, 2 * min(STREAMS, calls - first), 2):
                frames.append(http2.header_block(blocks.block(stream), stream))
                if message:
                    frames.append(http2.frame(http2.DATA, http2.END_STREAM, stream, message))
            connection.sendall(b"".join(frames))

    def close(self) -> None:
        for connection in self.connections:
            connection.close()


@pytest.fixture
def attacker(half_served: Served, request: pytest.FixtureRequest) -> Iterator[Attacker]:
    attacker = Attacker(half_served, getattr(request, "param", OTHER))
    yield attacker
    attacker.close()


def until(condition: Callable[[], bool]) -> None:
    """Wait for what has to happen soon."""
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def predictions(server: Served, name: str) -> float:
    """Calls of Predict that were begun, or that have ended, by the name of the metric."""
    with urllib.request.urlopen(f"{server.operations}/metrics") as page:
        families = text_string_to_metric_families(page.read().decode())
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and sample.labels["grpc_method"] == "Predict"
    )


def begun(server: Served) -> float:
    return predictions(server, "grpc_server_started_total")


def is_answered(server: Served) -> bool:
    with Client(server.address, timeout=20) as client:
        return len(client.predict(wire(1, 50))) == 1


def test_silent_calls_take_no_place_from_other_clients(
    half_served: Served, attacker: Attacker
) -> None:
    before = begun(half_served)
    attacker.begin(PREDICT, 200)
    until(lambda: begun(half_served) - before >= 200)
    for _ in range(20):
        # At once, without being told to retry.
        assert is_answered(half_served)


@pytest.mark.parametrize("attacker", [SAME], indirect=True)
def test_silent_calls_are_ended_for_the_sake_of_their_own_client(
    half_served: Served, attacker: Attacker
) -> None:
    before = begun(half_served)
    attacker.begin(PREDICT, 200)
    until(lambda: begun(half_served) - before >= 200)
    refused = 0
    for _ in range(100):
        try:
            assert is_answered(half_served)
            break
        except Overloaded as error:
            refused += 1
            time.sleep(error.retry_after)
    else:
        raise AssertionError(f"refused {refused} times")


def test_silent_calls_take_no_health_check_from_other_clients(
    half_served: Served, attacker: Attacker
) -> None:
    attacker.begin(CHECK, 200)
    with grpc.insecure_channel(half_served.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for _ in range(20):
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_calls_beyond_a_number_that_take_no_answer_are_reset(
    half_served: Served, attacker: Attacker
) -> None:
    window = {http2.INITIAL_WINDOW_SIZE: 0}
    resets = 0
    for _ in range(300):
        # Few at a time, which are all admitted.
        attacker.begin(CHECK, 8, http2.prefixed(b""), window)
        resets += count_resets(attacker.connections[:8])
        if resets:
            return
    raise AssertionError("no call was reset")


def count_resets(connections: list[socket.socket]) -> int:
    """RST_STREAM frames that have come."""
    head = http2.frame(http2.RST_STREAM, 0, 0, bytes(4))[:5]
    found = 0
    for connection in connections:
        connection.settimeout(0.001)
        with suppress(TimeoutError):
            found += connection.recv(1 << 16).count(head)
    return found


def test_server_stops_with_silent_calls_open(
    tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    with served(tiny_path, signer, tmp_path, "--false-positive-rate", "0.05") as server:
        attacker = Attacker(server, OTHER)
        attacker.begin(PREDICT, 60)
        assert is_answered(server)
        assert server.terminate() == 0
        attacker.close()
