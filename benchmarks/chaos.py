"""Fifty reloads, ten killed workers, five upstreams and five Redises that go and come, a full disk.

    python -m benchmarks.chaos [--reloads 50] [--kills 10] [--restarts 5]

A tiny guard in front of a classifier that is served elsewhere, two workers, monitors in Redis, a
quarantine on a disk of its own, under steady load of clean and forged images. Every answer is
compared with what the classifier says, every status counted by the fault that was going on. What is
documented: a refusal of clean rows while Redis is down (`on_fault = "reject"`), UNAVAILABLE while
the upstream is down and for requests that a killed worker had; nothing else, and never another
answer. A full disk is a small tmpfs, which takes root; without it that fault is left out.
Writes `benchmarks/results/chaos/result.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import environment
from benchmarks.running import children
from benchmarks.scrape import total
from firewall.bundle.signing import Signer, user_signer
from firewall.bundle.store import open_bundle
from firewall.client import OpenInferenceClient
from firewall.client.admin import AdminClient
from firewall.errors import FirewallError, NotReady, Overloaded, Refused
from firewall.quarantine.opening import open_store
from firewall.train.steps import write_json
from tests.support.peers import free_ports
from tests.support.redis import Redis
from tests.support.served import FREE_PORTS
from tests.support.tiny import another, build_tiny, forged, wire

OUT = Path(__file__).parent / "results" / "chaos" / "result.json"
CLIENTS = 4
#: Statuses that a fault may give besides OK for clean rows and PERMISSION_DENIED for forged ones.
DOCUMENTED: dict[str, set[str]] = {
    "nothing": set(),
    "reloads": set(),
    "killed workers": {"UNAVAILABLE"},
    "upstream restarts": {"UNAVAILABLE"},
    "Redis restarts": {"PERMISSION_DENIED"},
    "full disk": set(),
}
POLICY = """
false_positive_rate = 0.05
[[monitors]]
name = "queries"
plugin = "query-similarity"
threshold = 40
"""


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Load:
    """Clients that ask and ask, and compare."""

    def __init__(self, address: str, clean: list[np.ndarray], expected: list[np.ndarray]) -> None:
        self._address, self._clean, self._expected = address, clean, expected
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.phase = "nothing"
        self.counts: dict[str, Counter[str]] = {phase: Counter() for phase in DOCUMENTED}
        self.wrong: list[str] = []
        self._threads = [
            threading.Thread(target=self._ask, args=(number,)) for number in range(CLIENTS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def total(self) -> int:
        return sum(sum(counts.values()) for counts in self.counts.values())

    def _ask(self, number: int) -> None:
        rng = np.random.default_rng(number)
        with OpenInferenceClient(self._address, model="tiny", timeout=20) as client:
            while not self._stop.is_set():
                bad = rng.random() < 0.2
                row = int(rng.integers(len(self._clean)))
                x = forged(1) if bad else self._clean[row]
                phase = self.phase
                try:
                    found = client.infer({"image": x})["logits"]
                    status = "OK"
                    if bad:
                        self._note(phase, "a forgery was answered")
                    elif not np.array_equal(found, self._expected[row]):
                        self._note(phase, f"row {row} has another answer")
                except Refused:
                    status = "PERMISSION_DENIED"
                except NotReady:
                    status = "UNAVAILABLE"
                    time.sleep(0.02)
                except Overloaded:
                    status = "RESOURCE_EXHAUSTED"
                except FirewallError as error:
                    status = getattr(error, "status", type(error).__name__)
                key = f"{status}, forged" if bad else status
                with self._lock:
                    # A request that began before a fault may end in it, and the other way round.
                    self.counts[phase if phase != "nothing" else self.phase][key] += 1

    def _note(self, phase: str, text: str) -> None:
        with self._lock:
            self.wrong.append(f"{phase}: {text}")


class Process:
    """`firewall serve` that can be killed and started again on its port."""

    def __init__(self, arguments: list[str], audit: Path, errors: Path) -> None:
        self._command = [
            sys.executable, "-m", "firewall", "serve", *arguments, "--host", "127.0.0.1",
            "--audit-log", str(audit),
        ]  # fmt: skip
        self._audit, self._errors = audit, errors
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> dict[str, Any]:
        """Start it; returns its `serving` event."""
        before = self._serving()
        with open(self._errors, "a") as errors:
            self.process = subprocess.Popen(self._command, stderr=errors, text=True)
        while len(now := self._serving()) == len(before):
            if self.process.poll() is not None:
                raise SystemExit(self._errors.read_text())
            time.sleep(0.05)
        return now[-1]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it; returns its status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def kill(self) -> None:
        """End it if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(60)

    def _serving(self) -> list[dict[str, Any]]:
        if not self._audit.exists():
            return []
        events = [json.loads(line) for line in self._audit.read_text().splitlines()]
        return [one for one in events if one["event"] == "serving"]


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A disk of four megabytes at the folder; False where it cannot be had."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)],
        capture_output=True, check=False,
    )  # fmt: skip
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def stored(operations_port: int) -> float:
    """Quarantined rows that the workers have counted as stored."""
    return total(operations_port, "firewall_quarantine_rows_total", state="stored")


def is_replaced(supervisor: int, victim: int, operations_port: int) -> bool:
    """Whether another worker answers in the place of the one that was killed."""
    now = children(supervisor)
    return victim not in now and len(now) == 2 and total(operations_port, "firewall_workers") == 2


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("a fault did not end in time")
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reloads", type=int, default=50)
    parser.add_argument("--kills", type=int, default=10, help="of workers")
    parser.add_argument("--restarts", type=int, default=5, help="of upstream and of Redis")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measured_in = environment(("onnxruntime-gpu", "grpcio", "redis", "sqlalchemy"))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        os.environ["FIREWALL_CONFIG_DIR"] = str(folder / "config")
        signer = Signer.generate()
        build_tiny(folder / "tiny", signer)
        (folder / "signer.pub").write_text(signer.public)
        (folder / "user.pub").write_text(user_signer().public)
        [port] = free_ports(1)
        upstream = Process(
            [str(folder / "tiny"), "--trust", str(folder / "signer.pub"), "--mode", "off",
             "--grpc-port", str(port), "--rest-port", "0", "--operations-port", "0",
             "--admin-socket", "off"],
            folder / "upstream.jsonl", folder / "upstream.txt",
        )  # fmt: skip
        # What a failure leaves behind would go on answering.
        stack.callback(upstream.kill)
        upstream.start()
        url = f"grpc://127.0.0.1:{port}/tiny"
        np.savez(folder / "clean.npz", x=wire(200, 1))
        subprocess.run(
            [sys.executable, "-m", "firewall", "guard", url, str(folder / "clean.npz"),
             "--preset", "zero-one", "--minutes", "0.01", "--out", str(folder / "first"),
             "--false-positive-rate", "0.05"],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        first = open_bundle(folder / "first", {user_signer().public})
        another(first, folder / "second", user_signer(), version="2")
        redis = Redis(folder)
        redis.start()
        disk = stack.enter_context(small_disk(folder / "disk"))
        (folder / "policy.toml").write_text(POLICY)
        database = folder / "disk" / "q.db"
        firewall = Process(
            [str(folder / "first"), "--trust", str(folder / "user.pub"), "--upstream", url,
             "--policy", str(folder / "policy.toml"), "--state", redis.url, "--state-key",
             str(folder / "state.key"), "--quarantine", str(database), "--quarantine-key",
             str(folder / "pseudonym.key"), "--quarantine-bytes", str(1 << 20), "--workers", "2",
             *FREE_PORTS, "--admin-socket", str(folder / "admin.sock")],
            folder / "audit.jsonl", folder / "errors.txt",
        )  # fmt: skip
        stack.callback(firewall.kill)
        event = firewall.start()
        assert firewall.process is not None
        address = f"127.0.0.1:{event['grpc_port']}"
        clean, expected = [], []
        with (
            OpenInferenceClient(address, model="tiny") as guarded,
            OpenInferenceClient(f"127.0.0.1:{port}", model="tiny") as bare,
        ):
            until(lambda: guarded.ready())
            for seed in range(100, 140):
                x = wire(1, seed)
                try:
                    guarded.infer({"image": x})
                except Refused:
                    continue
                clean.append(x)
                expected.append(bare.infer({"image": x})["logits"])
        admin = stack.enter_context(AdminClient(event["admin"]))
        load = Load(address, clean, expected)
        load.start()
        done: Counter[str] = Counter()
        seen = 0.0
        try:
            time.sleep(3)
            load.phase = "reloads"
            for number in range(arguments.reloads):
                newer = number % 2 == 0
                place = folder / ("second" if newer else "first")
                assert admin.reload(path=str(place), allow_downgrade=not newer).changed
                done["reloads"] += 1
            time.sleep(1)
            say(f"reloads: {load.counts['reloads']}")
            seen = stored(event["operations_port"])
            load.phase = "killed workers"
            time.sleep(0.5)
            for _ in range(arguments.kills):
                [victim, *_] = children(firewall.process.pid)
                os.kill(victim, signal.SIGKILL)
                until(partial(is_replaced, firewall.process.pid, victim, event["operations_port"]))
                done["killed workers"] += 1
            say(f"killed workers: {load.counts['killed workers']}")
            time.sleep(1)
            load.phase = "upstream restarts"
            time.sleep(0.5)
            for _ in range(arguments.restarts):
                upstream.stop(signal.SIGKILL)
                time.sleep(1)
                upstream.start()
                until(lambda: admin.status()[0].ready)
                time.sleep(1)
                done["upstream restarts"] += 1
            say(f"upstream restarts: {load.counts['upstream restarts']}")
            time.sleep(2)
            load.phase = "Redis restarts"
            time.sleep(0.5)
            for _ in range(arguments.restarts):
                redis.stop()
                time.sleep(1)
                redis.start()
                time.sleep(1)
                done["Redis restarts"] += 1
            say(f"Redis restarts: {load.counts['Redis restarts']}")
            time.sleep(2)
            if disk:
                load.phase = "full disk"
                time.sleep(0.5)
                filler = folder / "disk" / "filler"
                with open(filler, "wb") as file:
                    try:
                        while True:
                            file.write(b"\0" * 65_536)
                            file.flush()
                    except OSError:
                        done["full disk"] += 1
                time.sleep(5)
                filler.unlink()
                time.sleep(5)
                say(f"full disk: {load.counts['full disk']}")
            load.phase = "nothing"
            time.sleep(2)
        finally:
            load.stop()
        code = firewall.stop()
        upstream.stop()
        redis.stop()
        store = open_store(str(database), None)
        records = store.find(limit=10**6)
        readable = 0
        for record in records:
            store.image(record)
            readable += 1
        store.close()
    undocumented = {
        phase: {
            key: count
            for key, count in counts.items()
            if key not in {"OK", "PERMISSION_DENIED, forged"}
            and key.partition(",")[0] not in DOCUMENTED[phase]
        }
        for phase, counts in load.counts.items()
    }
    result = {
        "environment": measured_in,
        "faults": done,
        "requests": load.total(),
        "statuses": load.counts,
        "undocumented": {phase: found for phase, found in undocumented.items() if found},
        "wrong_answers": len(load.wrong),
        "quarantine": {
            # Of the workers that ran then; those that were killed later had said more.
            "said_to_be_stored_before_kills": seen,
            "rows": len(records),
            "readable": readable,
        },
        "exit_status": code,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, result)
    say(json.dumps({key: result[key] for key in ("faults", "undocumented", "wrong_answers")}))
    for line in load.wrong[:5]:
        say(line)


if __name__ == "__main__":
    main()
