"""Servers as processes on one core, and what they use of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from benchmarks.load import HttpConnection

#: Seconds that a server may take to its first answer.
_PATIENCE = 180.0


class NotStarted(SystemExit):
    """A server ended, or did not answer in time."""


@dataclass(frozen=True)
class Running:
    """A server that answers, with every process of its session."""

    process: subprocess.Popen[bytes]
    #: From the start of the process to its first answer.
    start_seconds: float

    def processes(self) -> list[int]:
        """Ids of all processes of its session."""
        found = []
        for place in Path("/proc").iterdir():
            if place.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (place / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[3]) == self.process.pid:
                        found.append(int(place.name))
        return found

    def pin(self, core: int) -> None:
        """Keep every thread on one core; Triton's threads take all of them when they start."""
        for one in self.processes():
            with contextlib.suppress(OSError):
                for thread in Path(f"/proc/{one}/task").iterdir():
                    os.sched_setaffinity(int(thread.name), {core})

    def cpu_seconds(self) -> float:
        """User and system time of all processes so far."""
        ticks = 0
        for one in self.processes():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory_mib(self) -> float:
        """Upper bound that counts shared pages once: the private pages of every process, and the
        largest shared part.
        """
        own, shared = 0.0, 0.0
        for one in self.processes():
            with contextlib.suppress(OSError):
                rows = dict(
                    line.split(":", 1)
                    for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()[1:]
                )
                kib = {key: int(value.split()[0]) for key, value in rows.items() if "kB" in value}
                private = kib["Private_Clean"] + kib["Private_Dirty"]
                own += private
                shared = max(shared, kib["Rss"] - private)
        return (own + shared) / 1024


def children(pid: int) -> list[int]:
    """Ids of the processes that a process has started."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        # Threads end meanwhile.
        with contextlib.suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return found


def resident_mib(pid: int) -> float:
    """Resident memory of a process and its children, such as those that decode images."""
    total = 0.0
    for one in (pid, *children(pid)):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{one}/status").read_text()
            [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
            total += int(line.split()[1]) / 1024
    return total


@contextmanager
def running(
    command: Sequence[str],
    answers: Callable[[], bool],
    *,
    core: int,
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """Start a server on one core, wait until it answers, and stop its whole session afterwards."""
    log = folder / "server.log"
    begun = time.perf_counter()
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=os.environ | dict(environment or {}),
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
    try:
        while not answers():
            if process.poll() is not None or time.perf_counter() - begun > _PATIENCE:
                raise NotStarted(f"{command}: {log.read_text()[-2000:]}")
            time.sleep(0.005)
        found = Running(process, time.perf_counter() - begun)
        found.pin(core)
        yield found
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def over_grpc(address: str, method: str, request: bytes) -> Callable[[], bool]:
    """Whether a server answers one request; a guard that refuses it has answered."""

    def asked() -> bool:
        with grpc.insecure_channel(address) as channel:
            try:
                channel.unary_unary(method)(request, timeout=5)
            except grpc.RpcError as error:
                return bool(error.code() is grpc.StatusCode.PERMISSION_DENIED)
        return True

    return asked


def over_http(address: str, request: bytes) -> Callable[[], bool]:
    """Whether a server answers one whole HTTP request; a guard that refuses it has answered."""

    async def ask() -> str:
        connection = HttpConnection(address)
        try:
            return await connection.send(request)
        finally:
            connection.close()

    return lambda: asyncio.run(ask()) in ("OK", "PERMISSION_DENIED")
