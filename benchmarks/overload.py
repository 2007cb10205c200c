"""Ten times as many requests as can be answered, for a minute.

    python -m benchmarks.overload [--seconds 60]

The default bundle, JPEG bytes through `Predict`, one server on one core. One client alone: the
unloaded latency. Then ever more clients that ask one after the other: the best throughput. Then
requests at ten times that rate, whether earlier ones are answered or not, from processes of their
own; the generator has the machine's other cores, and what it could not send in time is counted.
Writes `benchmarks/results/overload/result.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.environment import environment
from firewall.bundle.signing import Signer
from firewall.train.default_bundle import build_default
from firewall.train.photographs import cat
from firewall.train.steps import write_json
from firewall.wire import firewall_pb2 as native

OUT = Path(__file__).parent / "results" / "overload" / "result.json"
_METHOD = "/firewall.v1.FirewallService/Predict"
OVERLOAD, MAX_WAIT, DEADLINE = 10.0, 1.0, 20.0


def summary(seconds: list[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    if not seconds:
        return {"count": 0}
    at = np.percentile(seconds, [50, 99, 99.9]) * 1000
    return {"count": len(seconds), "p50_ms": at[0], "p99_ms": at[1], "p99_9_ms": at[2]}


async def closed(address: str, request: bytes, clients: int, seconds: float) -> list[float]:
    """Latencies of clients that ask one after the other; who is refused asks again soon."""
    found: list[float] = []
    end = time.perf_counter() + seconds
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(_METHOD)

        async def ask() -> None:
            while (start := time.perf_counter()) < end:
                try:
                    await call(request, timeout=DEADLINE)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                        raise
                    await asyncio.sleep(0.05)
                else:
                    found.append(time.perf_counter() - start)

        await asyncio.gather(*(ask() for _ in range(clients)))
    return found


async def opened(
    address: str, request: bytes, rate: float, seconds: float
) -> tuple[list[tuple[str, float]], int]:
    """Status and latency of requests at a rate, and how many could not be sent in time."""
    found: list[tuple[str, float]] = []
    late = 0
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(_METHOD)

        async def ask() -> None:
            start = time.perf_counter()
            try:
                await call(request, timeout=DEADLINE)
                status = "OK"
            except grpc.aio.AioRpcError as error:
                status = error.code().name
            found.append((status, time.perf_counter() - start))

        tasks: set[asyncio.Task[None]] = set()
        begun = time.perf_counter()
        for number in range(int(rate * seconds)):
            due = begun + number / rate
            pause = due - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
            elif pause < -1.0:
                late += 1
                continue
            task = asyncio.create_task(ask())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
    return found, late


def drive(kind: str, *arguments: Any) -> Any:
    """In a process of its own."""
    return asyncio.run(closed(*arguments) if kind == "closed" else opened(*arguments))


def memory(process: subprocess.Popen[str]) -> float:
    """Resident, in MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measured_in = environment(("onnxruntime-gpu", "grpcio", "numpy"))
    signer = Signer.generate()
    request = native.PredictRequest(
        input=native.Input(images=native.Images(encoded=[cat().read_bytes()]))
    ).SerializeToString()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_default(folder / "bundle", signer, lambda step: print(step, file=sys.stderr))
        (folder / "signer.pub").write_text(signer.public)
        process = subprocess.Popen(
            [
                sys.executable, "-m", "firewall", "serve", str(folder / "bundle"), "--trust",
                str(folder / "signer.pub"), "--host", "127.0.0.1", "--port", "0",
                "--http-port", "0", "--threads", "1", "--max-wait", str(MAX_WAIT),
                "--audit-log", str(folder / "audit.jsonl"),
            ],
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        audit = folder / "audit.jsonl"
        while not (audit.exists() and '"serving"' in audit.read_text()):
            if process.poll() is not None:
                raise SystemExit("the server did not start")
            time.sleep(0.1)
        os.sched_setaffinity(process.pid, {cores[0]})
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {cores[0]})
        os.sched_setaffinity(0, set(cores[1:]) or set(cores))
        address = f"127.0.0.1:{json.loads(audit.read_text().splitlines()[0])['port']}"
        context = get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=context) as pool:

            def run(kind: str, *rest: Any) -> Any:
                return pool.submit(drive, kind, address, request, *rest).result()

            run("closed", 1, 3.0)
            alone = run("closed", 1, 10.0)
            best, by_clients = 0.0, {}
            for clients in (2, 4, 8, 16, 32):
                found = run("closed", clients, 8.0)
                by_clients[clients] = len(found) / 8.0
                best = max(best, by_clients[clients])
                print(f"{clients} clients: {by_clients[clients]:.1f}/s", file=sys.stderr)
            before = memory(process)
            rate = OVERLOAD * best / 2
            both = [
                pool.submit(drive, "opened", address, request, rate, arguments.seconds)
                for _ in range(2)
            ]
            answered, late = [], 0
            for one in both:
                some, missed = one.result()
                answered += some
                late += missed
            after = memory(process)
            recovered = run("closed", 1, 5.0)
        process.terminate()
        code = process.wait(60)
    accepted = [seconds for status, seconds in answered if status == "OK"]
    refused = [seconds for status, seconds in answered if status == "RESOURCE_EXHAUSTED"]
    unloaded = summary(alone)
    figures = summary(accepted)
    result = {
        "environment": measured_in,
        "max_wait_seconds": MAX_WAIT,
        "unloaded": unloaded,
        "throughput_by_clients": by_clients,
        "best_throughput": best,
        "offered": {
            "factor": OVERLOAD,
            "rate": 2 * rate,
            "seconds": arguments.seconds,
            "sent": len(answered),
            "too_late_to_send": late,
        },
        "statuses": Counter(status for status, _ in answered),
        "accepted": figures,
        "refused": summary(refused),
        "ratios": {
            "throughput_over_best": len(accepted) / arguments.seconds / best,
            "accepted_p99_over_bound": figures["p99_ms"]
            / (2 * unloaded["p99_ms"] + 1000 * MAX_WAIT),
        },
        "afterwards": summary(recovered),
        "memory_mib": {"before": before, "after": after},
        "exit_status": code,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, result)
    print(json.dumps({key: result[key] for key in ("ratios", "accepted", "refused", "statuses")}))


if __name__ == "__main__":
    main()
