from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from firewall.bundle.signing import Signer
from tests.support.served import Served, served

MAX_MESSAGE = 1 << 20


@pytest.fixture(scope="session")
def server(
    tiny_path: Path, signer: Signer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """One enforcing server for all tests that leave it as it is."""
    with served(
        tiny_path, signer, tmp_path_factory.mktemp("server"),
        "--false-positive-rate", "0.05", "--max-message-bytes", str(MAX_MESSAGE),
    ) as running:  # fmt: skip
        yield running
        assert running.process.poll() is None, "the server died during the tests"
