"""Where the processor time of a guarded request goes, by stage, over gRPC and REST.

    python -m benchmarks.stages [--seconds 4]

The small classifier with all guards on one core, clean images, one client and 32. Stages are read
from `firewall_stage_seconds` before and after; the time of a batch is divided among its requests.
The rest of the process's time is transport, parsing, admission, metrics and audit.
Writes `benchmarks/results/stages/result.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.contenders import SENT, Server, firewall, started
from benchmarks.environment import environment
from benchmarks.load import closed, generators, summary
from benchmarks.requests import grpc_tensor, rest_tensor
from benchmarks.scrape import Stages, stage_seconds
from benchmarks.small import small_bundle, small_classifier
from firewall.bundle.signing import Signer
from firewall.train.steps import write_json

OUT = Path(__file__).parent / "results" / "stages"
CLIENTS = (1, 32)


def parts(before: Stages, after: Stages, cpu_seconds: float) -> dict[str, float]:
    """Milliseconds of a request by stage, each without the stages within it."""
    requests = after["call"][1] - before["call"][1]

    def mean(name: str) -> float:
        none = (0.0, 0.0)
        return 1e3 * (after.get(name, none)[0] - before.get(name, none)[0]) / requests

    found = {
        "cheap tier": mean("cheap"),
        "expensive tier": mean("expensive"),
        "decision": mean("guard") - mean("cheap") - mean("expensive"),
    }
    whole = 1e3 * cpu_seconds / requests
    return found | {"transport and rest": whole - sum(found.values()), "whole": whole}


def measured(server: Server, folder: Path, seconds: float) -> dict[str, Any]:
    """Start a server once and measure it with each number of clients."""
    cores = sorted(os.sched_getaffinity(0))
    found: dict[str, Any] = {}
    folder.mkdir()
    with (
        generators(1, set(cores[1:])) as pool,
        started(server, folder, cores[0]) as (live, target),
    ):
        lines = (folder / "audit.jsonl").read_text().splitlines()
        [event] = [one for line in lines if (one := json.loads(line))["event"] == "serving"]
        port = event["operations_port"]
        pool.submit(closed, target, max(CLIENTS), 1.0).result()
        live.pin(cores[0])
        for clients in CLIENTS:
            before, used = stage_seconds(port), live.cpu_seconds()
            answered = pool.submit(closed, target, clients, seconds).result()
            used = live.cpu_seconds() - used
            found[str(clients)] = {
                "per_second": len(answered.seconds) / seconds,
                "ms": parts(before, stage_seconds(port), used),
            } | summary(answered.seconds)
    print(server.name, json.dumps(found), file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measured_in = environment(("onnxruntime-gpu", "grpcio", "uvicorn", "numpy", "protobuf"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["FIREWALL_CONFIG_DIR"] = str(folder / "config")
        small = small_classifier(folder)
        signer = Signer.generate()
        key = folder / "signer.pub"
        key.write_text(signer.public)
        guarded = firewall(small_bundle(small, folder / "bundle", signer), key)
        images = [image[None] for image in small.clean[SENT]]
        servers = (
            Server("gRPC", guarded, [grpc_tensor("small", "image", one) for one in images]),
            Server("REST", guarded, [rest_tensor("small", "image", one) for one in images], "rest"),
        )
        result = {
            server.name: measured(server, folder / server.name, arguments.seconds)
            for server in servers
        }
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(
        arguments.out / "result.json",
        {"environment": measured_in, "seconds": arguments.seconds, "protocols": result},
    )


if __name__ == "__main__":
    main()
