"""Servers as processes on one core, and what they use of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

#: Seconds that a server may take to answer.
_PATIENCE = 180.0


@dataclass(frozen=True)
class Running:
    """A server that answers, with every process that it has started."""

    process: subprocess.Popen[bytes]
    #: From its start to its first answer.
    start_seconds: float

    def processes(self) -> list[int]:
        """All of its session."""
        found = []
        for place in Path("/proc").iterdir():
            if place.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (place / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[3]) == self.process.pid:
                        found.append(int(place.name))
        return found

    def pin(self, core: int) -> None:
        """Keep every thread on one core; Triton's take all of them when they start."""
        for one in self.processes():
            with contextlib.suppress(OSError):
                for thread in Path(f"/proc/{one}/task").iterdir():
                    os.sched_setaffinity(int(thread.name), {core})

    def cpu_seconds(self) -> float:
        """User and system time of all of them, so far."""
        ticks = 0
        for one in self.processes():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory_mib(self) -> float:
        """At most, each page once: the sum over processes of what is theirs alone, and the largest
        shared part.
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


@contextmanager
def running(
    command: Sequence[str],
    answers: Callable[[], bool],
    *,
    core: int,
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """A server, on one core, until it answers; stopped afterwards with all that it started."""
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
                raise SystemExit(f"{command}: {log.read_text()[-2000:]}")
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
    """Whether one request is answered."""

    def ask() -> bool:
        with grpc.insecure_channel(address) as channel:
            try:
                channel.unary_unary(method)(request, timeout=5)
            except grpc.RpcError:
                return False
        return True

    return ask


def over_http(url: str, body: bytes) -> Callable[[], bool]:
    """Whether one JSON request is answered."""

    def ask() -> bool:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    return ask
