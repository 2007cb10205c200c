"""A real `firewall serve` in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from firewall.bundle.signing import Signer

#: Flags of a server that takes any ports.
FREE_PORTS = ("--grpc-port", "0", "--rest-port", "0", "--operations-port", "0")


@dataclass
class Served:
    process: subprocess.Popen[str]
    grpc_port: int
    rest_port: int
    operations_port: int
    admin: str | None
    audit: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def rest(self) -> str:
        return f"http://127.0.0.1:{self.rest_port}"

    @property
    def operations(self) -> str:
        return f"http://127.0.0.1:{self.operations_port}"

    def events(self) -> list[dict[str, Any]]:
        """Return the audit log once it no longer grows: it is written after the answer.

        Under load that is logged it never stops growing; use `events_so_far` there.
        """
        before = None
        for _ in range(100):
            events = self.events_so_far()
            if events == before:
                return events
            before = events
            time.sleep(0.2)
        raise AssertionError("the audit log grew for 20 seconds")

    def events_so_far(self) -> list[dict[str, Any]]:
        """Return the whole lines of the audit log, without waiting."""
        written, newline, _ = self.audit.read_text().rpartition("\n")
        return [json.loads(line) for line in (written + newline).splitlines()]

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def served(bundle: Path, signer: Signer, folder: Path, *options: str) -> Iterator[Served]:
    key, audit, errors = folder / "signer.pub", folder / "audit.jsonl", folder / "stderr.txt"
    key.write_text(signer.public + "\n")
    with open(errors, "w") as stderr:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "firewall", "serve", str(bundle), "--trust", str(key),
                "--host", "127.0.0.1", *FREE_PORTS,
                "--audit-log", str(audit), *options,
            ],
            stderr=stderr,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    try:
        for _ in range(600):
            if audit.exists() and '"serving"' in audit.read_text():
                break
            if process.poll() is not None:
                raise AssertionError(errors.read_text())
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        events = [json.loads(line) for line in audit.read_text().splitlines()]
        [event] = [one for one in events if one["event"] == "serving"]
        yield Served(
            process,
            event["grpc_port"],
            event["rest_port"],
            event["operations_port"],
            event["admin"],
            audit,
        )
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)


def call(address: str, method: str, data: bytes, timeout: float = 20, **metadata: str) -> bytes:
    """Send bytes to a method, whatever they are."""
    with grpc.insecure_channel(address) as channel:
        done: bytes = channel.unary_unary(method)(
            data,
            timeout=timeout,
            metadata=tuple((key.replace("_", "-"), value) for key, value in metadata.items()),
        )
        return done


def details(error: grpc.RpcError) -> dict[str, Any]:
    """google.rpc details of an error, by message name."""
    found: dict[str, Any] = {}
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for packed in Status.FromString(value).details:
                name = packed.type_url.rpartition(".")[2]
                found[name] = getattr(error_details_pb2, name).FromString(packed.value)
    return found
