"""A real server in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firewall.errors import NotReady


@contextmanager
def running(bundle: Path, *options: str) -> Iterator[str]:
    """Start `firewall serve` on free ports of the loopback; yields its gRPC address.

    Raises:
        NotReady: it ended before it was ready; carries its standard error.

    """
    process = subprocess.Popen(
        [
            sys.executable, "-m", "firewall", "serve", str(bundle),
            "--host", "127.0.0.1", "--grpc-port", "0", "--rest-port", "0",
            "--operations-port", "0", "--admin-socket", "off", *options,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "serving":
                yield f"127.0.0.1:{event['grpc_port']}"
                break
        else:
            raise NotReady(f"the server did not start: {process.stderr.read().strip()}")
    finally:
        process.terminate()
        process.communicate(timeout=30)
