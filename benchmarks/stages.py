"""Where the processor time of a guarded request goes, by stage, over our transport and gRPC's.

    python -m benchmarks.stages [--seconds 4]

The small classifier with all guards on one core, clean images, one client and 32. Stages are read
from `firewall_stage_seconds` before and after; of a batch's time each of its requests has its part.
What is left of the process's time is the transport, and everything that a request needs besides.
Writes `benchmarks/results/stages/result.json`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from benchmarks.load import Target, closed, generators, summary
from benchmarks.running import over_grpc, running
from benchmarks.serving import INFER, ROOT, tensor_request
from benchmarks.sidecar import stages
from benchmarks.small import small_bundle, small_classifier
from firewall.bundle.signing import Signer
from firewall.train.steps import write_json
from tests.support.peers import free_ports

OUT = Path(__file__).parent / "results" / "stages"
CLIENTS = (1, 32)
TRANSPORTS = ("http2", "grpc")


def parts(before: dict[str, Any], after: dict[str, Any], cpu_seconds: float) -> dict[str, float]:
    """Milliseconds of a request by stage, each without what is within it."""
    requests = after["call"][1] - before["call"][1]

    def mean(name: str) -> float:
        none = (0.0, 0.0)
        return 1e3 * (after.get(name, none)[0] - before.get(name, none)[0]) / requests

    found = {
        "decode": mean("decode"),
        "cheap": mean("cheap"),
        "expensive": mean("expensive"),
        "decide": mean("guard") - mean("cheap") - mean("expensive"),
    }
    whole = 1e3 * cpu_seconds / requests
    return found | {"transport and rest": whole - sum(found.values()), "whole": whole}


def measured(command: list[str], requests: list[bytes], seconds: float) -> dict[str, Any]:
    """One start of a server."""
    cores = sorted(os.sched_getaffinity(0))
    port, http = free_ports(2)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, generators(1, set(cores[1:])) as pool:
        folder = Path(name)
        command = [
            *command, "--port", str(port), "--http-port", str(http),
            "--audit-log", str(folder / "audit.jsonl"),
        ]  # fmt: skip
        place = f"127.0.0.1:{port}"
        answers = over_grpc(place, INFER, requests[0])
        with running(
            command, answers, core=cores[0], folder=folder, environment={"PYTHONPATH": str(ROOT)}
        ) as live:
            target = Target(place, INFER, requests)
            pool.submit(closed, target, max(CLIENTS), 1.0).result()
            live.pin(cores[0])
            for clients in CLIENTS:
                before, used = stages(http), live.cpu_seconds()
                answered = pool.submit(closed, target, clients, seconds).result()
                used = live.cpu_seconds() - used
                found[str(clients)] = {
                    "per_second": len(answered.seconds) / seconds,
                    "ms": parts(before, stages(http), used),
                } | summary(answered.seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measured_in = environment(("onnxruntime-gpu", "grpcio", "numpy", "protobuf"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["FIREWALL_CONFIG_DIR"] = str(folder / "config")
        small = small_classifier(folder)
        signer = Signer.generate()
        key = folder / "signer.pub"
        key.write_text(signer.public)
        bundle = small_bundle(small, folder / "bundle", signer)
        requests = [tensor_request("small", "image", one[None]) for one in small.clean[3000:3256]]
        command = [
            sys.executable, "-m", "firewall", "serve", str(bundle), "--trust", str(key),
            "--host", "127.0.0.1", "--threads", "1", "--transport",
        ]  # fmt: skip
        result = {
            transport: measured([*command, transport], requests, arguments.seconds)
            for transport in TRANSPORTS
        }
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(
        arguments.out / "result.json",
        {"environment": measured_in, "seconds": arguments.seconds, "transports": result},
    )


if __name__ == "__main__":
    main()
