"""A stop that comes while the server starts, also where it is process 1 of a container."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firewall.bundle.signing import Signer
from tests.support.served import FREE_PORTS

#: Makes what it runs process 1 of a namespace of its own, as a container runtime does.
_FIRST = ("unshare", "--pid", "--fork", "--kill-child")


def first_is_possible() -> bool:
    return shutil.which("unshare") is not None and (
        subprocess.run([*_FIRST, "true"], capture_output=True, check=False).returncode == 0
    )


def child_of(pid: int) -> int:
    """The process that `unshare` runs, once it does."""
    for _ in range(500):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.01)
    raise AssertionError("unshare ran nothing")


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal (proc(5), SigCgt)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


@contextmanager
def starting(
    tiny_path: Path, signer: Signer, folder: Path, *options: str, first: bool
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server from the moment on at which it takes signals, and its process id."""
    key = folder / "signer.pub"
    key.write_text(signer.public)
    command = [
        *(_FIRST if first else ()), sys.executable, "-m", "firewall", "serve", str(tiny_path),
        "--trust", str(key), *FREE_PORTS, "--host", "127.0.0.1", "--false-positive-rate", "0.05",
        "--admin-socket", str(folder / "admin.sock"), "--audit-log", str(folder / "audit.jsonl"),
        *options,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        pid = child_of(process.pid) if first else process.pid
        while not catches(pid, signal.SIGTERM):
            time.sleep(0.005)
        yield process, pid
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def events(folder: Path) -> list[str]:
    audit = folder / "audit.jsonl"
    lines = audit.read_text().splitlines() if audit.exists() else []
    return [json.loads(line)["event"] for line in lines]


@pytest.mark.skipif(not first_is_possible(), reason="no right to make process namespaces")
@pytest.mark.parametrize("moment", [0.0, 0.3, 0.8])
def test_process_1_stops_at_once_while_it_starts(
    moment: float, tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    with starting(tiny_path, signer, tmp_path, first=True) as (process, pid):
        time.sleep(moment)
        os.kill(pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "Traceback" not in said


@pytest.mark.parametrize("moment", [0.0, 1.0, 2.5])
def test_a_supervisor_that_starts_stops_with_its_workers(
    moment: float, tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    with starting(tiny_path, signer, tmp_path, "--workers", "2", first=False) as (process, pid):
        time.sleep(moment)
        os.kill(pid, signal.SIGINT)
        # The workers hold the pipe as well: it ends when all of them have ended.
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "Traceback" not in said


def test_a_reload_asked_for_while_it_starts_is_done_afterwards(
    tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("false_positive_rate = 0.05\n")
    arguments = ("--policy", str(policy))
    with starting(tiny_path, signer, tmp_path, *arguments, first=False) as (process, pid):
        os.kill(pid, signal.SIGHUP)
        for _ in range(600):
            if "unchanged" in events(tmp_path):
                break
            assert process.poll() is None
            time.sleep(0.1)
        os.kill(pid, signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert events(tmp_path)[0] == "serving"
    assert "unchanged" in events(tmp_path)
    assert events(tmp_path)[-1] == "stopped"
