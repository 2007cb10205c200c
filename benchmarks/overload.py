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
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from benchmarks.contenders import Server, firewall, started
from benchmarks.environment import environment
from benchmarks.load import Answered, closed, generators, opened, summary
from benchmarks.requests import PREDICT, grpc_image
from benchmarks.running import resident_mib
from firewall.bundle.signing import Signer
from firewall.train.default_bundle import build_default
from firewall.train.photographs import cat
from firewall.train.steps import write_json

OUT = Path(__file__).parent / "results" / "overload" / "result.json"
OVERLOAD, MAX_WAIT = 10.0, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measured_in = environment(("onnxruntime-gpu", "grpcio", "numpy"))
    signer = Signer.generate()
    request = grpc_image(cat().read_bytes())
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        build_default(folder / "bundle", signer, lambda step: print(step, file=sys.stderr))
        (folder / "signer.pub").write_text(signer.public)
        options = ("--max-wait", str(MAX_WAIT))
        server = Server(
            "overload", firewall(folder / "bundle", folder / "signer.pub", *options), [request],
            method=PREDICT,
        )  # fmt: skip
        live, target = stack.enter_context(started(server, folder, cores[0]))
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
            before = resident_mib(live.process.pid)
            rate = OVERLOAD * best / 2
            both = [pool.submit(opened, target, rate, arguments.seconds) for _ in range(2)]
            answered = [one.result() for one in both]
            after = resident_mib(live.process.pid)
            recovered = run(1, 5.0)
        live.process.terminate()
        code = live.process.wait(60)
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
