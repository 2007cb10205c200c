"""Floods that a stock server does not withstand: memory stays bounded, and others are answered.

`benchmarks.floods` measures these and many more.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from firewall.bundle.signing import Signer
from tests.support import grpc_floods, http_floods
from tests.support.flooding import Flood, flooding
from tests.support.polite_client import Place, polite_clients
from tests.support.process_memory import Memory
from tests.support.served import served

#: MiB of the server, which has 120 when it is idle.
LIMIT = 300
#: Of the flood. Enough for gigabytes without bounds.
SECONDS = 3.0
#: Of the requests of a well-behaved client. `benchmarks.floods` measures 99 % and more; here other
#: tests may take the processors, so that its requests overlap more than they would.
LEAST_SHARE = 0.9
#: Seconds that a well-behaved client is ready to wait, on however slow a machine.
PATIENCE = 15.0


@pytest.mark.parametrize(
    ("port", "flood"),
    [
        pytest.param("grpc", grpc_floods.FLOODS["rapid reset"], id="grpc-rapid-reset"),
        pytest.param("grpc", grpc_floods.FLOODS["silent calls"], id="grpc-silent-calls"),
        pytest.param("rest", http_floods.FLOODS["endless headers"], id="rest-endless-headers"),
    ],
)
def test_flood_takes_neither_memory_nor_answers(
    port: str, flood: Flood, tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    with served(tiny_path, signer, tmp_path, "--false-positive-rate", "0.05") as server:
        attacked = server.grpc_port if port == "grpc" else server.rest_port
        asked = [
            Place(port, attacked),
            Place("check", server.grpc_port),
            Place("/v2/health/ready", server.rest_port),
        ]
        memory = Memory(server.process.pid)
        with (
            polite_clients(asked, PATIENCE) as ask,
            memory.sampled(),
            flooding(flood, attacked, SECONDS),
        ):
            found = ask(SECONDS)
        assert not memory.killed
        assert memory.peak < LIMIT
        for kind, answers in found.kept.items():
            assert answers.share >= LEAST_SHARE, (kind, answers.statuses)
        # The flood leaves nothing behind that would keep the server from stopping.
        assert server.terminate() == 0
