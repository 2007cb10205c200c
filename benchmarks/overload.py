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
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from benchmarks.environment import environment
from benchmarks.load import Answered, Target, closed, generators, opened, summary
from firewall.bundle.signing import Signer
from firewall.train.default_bundle import build_default
from firewall.train.photographs import cat
from firewall.train.steps import write_json
from firewall.wire import firewall_pb2 as native

OUT = Path(__file__).parent / "results" / "overload" / "result.json"
_METHOD = "/firewall.v1.FirewallService/Predict"
OVERLOAD, MAX_WAIT = 10.0, 1.0


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
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
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
        stack.callback(process.kill)
        audit = folder / "audit.jsonl"
        while not (audit.exists() and '"serving"' in audit.read_text()):
            if process.poll() is not None:
                raise SystemExit("the server did not start")
            time.sleep(0.1)
        os.sched_setaffinity(process.pid, {cores[0]})
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {cores[0]})
        address = f"127.0.0.1:{json.loads(audit.read_text().splitlines()[0])['port']}"
        target = Target(address, _METHOD, [request])
        with generators(2, set(cores[1:]) or set(cores)) as pool:

            def run(clients: int, seconds: float) -> list[float]:
                found: Answered = pool.submit(closed, target, clients, seconds).result()
                return found.of("OK")

            run(1, 3.0)
            alone = run(1, 10.0)
            best, by_clients = 0.0, {}
            for clients in (2, 4, 8, 16, 32):
                by_clients[clients] = len(run(clients, 8.0)) / 8.0
                best = max(best, by_clients[clients])
                print(f"{clients} clients: {by_clients[clients]:.1f}/s", file=sys.stderr)
            before = memory(process)
            rate = OVERLOAD * best / 2
            both = [pool.submit(opened, target, rate, arguments.seconds) for _ in range(2)]
            answered = [one.result() for one in both]
            after = memory(process)
            recovered = run(1, 5.0)
        process.terminate()
        code = process.wait(60)
    accepted = [seconds for one in answered for seconds in one.of("OK")]
    refused = [seconds for one in answered for seconds in one.of("RESOURCE_EXHAUSTED")]
    statuses = Counter(status for one in answered for status in one.statuses)
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
            "sent": statuses.total(),
            "too_late_to_send": sum(one.late for one in answered),
        },
        "statuses": statuses,
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
