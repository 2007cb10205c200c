"""Latency that the guard adds to a clean request, as a ratio to the bare classifier.

    python -m benchmarks.latency [--requests 400]

In one process, one row a request, bare and guarded in turn on the same clean crops, sessions with
the same threads and options. Then served: eight clients before `firewall serve`, and before a gRPC
server that runs the bare classifier, in turn on one core. Writes
`benchmarks/results/latency/result.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.contenders import OURS, PLAIN, image_servers, started
from benchmarks.environment import environment
from benchmarks.load import closed, generators
from benchmarks.running import resident_mib
from firewall.bundle.signing import Signer
from firewall.bundle.store import open_bundle
from firewall.client import Client
from firewall.guard.compile import example, export
from firewall.screening.calibration import Calibration
from firewall.screening.compiled import CompiledGuard
from firewall.screening.live import LiveGuard
from firewall.screening.policy import Policy
from firewall.screening.preprocess import to_wire
from firewall.screening.session import open_session
from firewall.screening.verdict import Verdict
from firewall.train import default_recipe as recipe
from firewall.train.default_bundle import build_default
from firewall.train.efficientnet import EfficientNetLite
from firewall.train.photographs import cat, crops, wheel_photographs
from tests.support.served import FREE_PORTS

OUT = Path(__file__).parent / "results" / "latency" / "result.json"
CLIENTS = 8


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = EfficientNetLite()

    def forward(self, wire: Tensor) -> Tensor:
        return self.classifier(wire).logits


def summary(seconds: np.ndarray) -> dict[str, float]:
    """Milliseconds."""
    return {
        "p50_ms": float(np.quantile(seconds, 0.5) * 1e3),
        "p95_ms": float(np.quantile(seconds, 0.95) * 1e3),
        "p99_ms": float(np.quantile(seconds, 0.99) * 1e3),
        "mean_ms": float(seconds.mean() * 1e3),
    }


def paired(
    files: Any,
    calibration: Calibration,
    graph: bytes,
    wire: np.ndarray,
    threads: int,
    requests: int,
) -> dict[str, Any]:
    """Bare and guarded in turn; which of the two goes first alternates."""
    bare = open_session("bare.onnx", graph, threads, "cpu")
    guard = LiveGuard(
        CompiledGuard(files, threads=threads), calibration, Policy(), model="m", log_outputs=True
    )
    order = np.random.default_rng(0).integers(0, len(wire), requests + 20)
    times: dict[str, list[float]] = {"bare": [], "guarded": []}
    doubted: list[bool] = []
    rejected = 0
    for number, row in enumerate(order):
        one = np.ascontiguousarray(wire[row : row + 1])
        turn = ("bare", "guarded") if number % 2 else ("guarded", "bare")
        for name in turn:
            start = time.perf_counter()
            if name == "bare":
                bare.run(None, {"wire": one})
            else:
                [decision] = guard.screen(one, [guard.plan("")]).decisions
            times[name].append(time.perf_counter() - start)
        doubted.append(decision.escalated)
        rejected += decision.verdict is Verdict.REJECT
    # The first twenty warm caches and arenas.
    kept = {name: np.array(values[20:]) for name, values in times.items()}
    figures: dict[str, Any] = {name: summary(values) for name, values in kept.items()}
    figures["threads"] = threads
    figures["requests"] = requests
    figures["escalated_share"] = float(np.mean(doubted))
    after = np.array(doubted[20:])
    figures["by_tier"] = {
        name: summary(kept["guarded"][rows])
        for name, rows in (("innocent", ~after), ("doubtful", after))
        if rows.any()
    }
    figures["rejected_share"] = rejected / len(order)
    figures["ratio"] = {
        key.removesuffix("_ms"): figures["guarded"][key] / figures["bare"][key]
        for key in ("p50_ms", "p95_ms", "p99_ms", "mean_ms")
    }
    return figures


def served(folder: Path, net: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Eight clients who wait for each answer, before either server on its own core, in turn."""
    servers = {one.name: one for one in image_servers(folder, net)}
    figures: dict[str, list[dict[str, float]]] = {PLAIN: [], OURS: []}
    own, other = sorted(os.sched_getaffinity(0))[:2]
    with generators(1, {other}) as pool:
        for number in range(rounds):
            for name in (PLAIN, OURS) if number % 2 else (OURS, PLAIN):
                place = folder / f"{number}-{name == OURS}"
                place.mkdir()
                with started(servers[name], place, own) as (_, target):
                    pool.submit(closed, target, CLIENTS, 3.0).result()
                    answered = pool.submit(closed, target, CLIENTS, seconds).result()
                done = answered.of("OK") + answered.of("PERMISSION_DENIED")
                figures[name].append(
                    summary(np.array(done)) | {"requests_per_second": len(done) / seconds}
                )
                print(f"{name}: {figures[name][-1]}", file=sys.stderr)
    ratios = {
        key: float(
            np.median([a[key] / b[key] for a, b in zip(figures[OURS], figures[PLAIN], strict=True)])
        )
        for key in ("requests_per_second", "p50_ms", "p99_ms")
    }
    return {
        "clients": CLIENTS, "rounds": rounds, "seconds": seconds, "bare": figures[PLAIN],
        "guarded": figures[OURS], "ratio": ratios,
    }  # fmt: skip


def start_up(bundle: Path, signer: Signer, folder: Path) -> dict[str, float]:
    """Measure seconds from the start of `firewall serve` to ready and to an answer, and memory."""
    key = folder / "signer.pub"
    key.write_text(signer.public)
    photograph = cat().read_bytes()
    start = time.perf_counter()
    process = subprocess.Popen(
        [
            sys.executable, "-m", "firewall", "serve", str(bundle), "--trust", str(key),
            "--host", "127.0.0.1", *FREE_PORTS,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        event = json.loads(process.stdout.readline())
        ready = time.perf_counter() - start
        with Client(f"127.0.0.1:{event['grpc_port']}") as client:
            client.predict([photograph])
        answered = time.perf_counter() - start
        return {
            "ready_seconds": ready,
            "first_answer_seconds": answered,
            "resident_mib": resident_mib(process.pid),
        }
    finally:
        process.terminate()
        process.communicate(timeout=30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measured_in = environment(("onnxruntime-gpu", "grpcio", "numpy"))
    signer = Signer.generate()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_default(folder / "bundle", signer, lambda step: print(step, file=sys.stderr))
        bundle = open_bundle(folder / "bundle", {signer.public})
        starts = [start_up(folder / "bundle", signer, folder) for _ in range(5)]
    calibration = Calibration.from_json(bundle.files["calibration.json"])
    graph = export(Bare().eval(), {"wire": example(recipe.INPUT, 2)}, ["logits"])
    torch.set_num_threads(1)
    pixels, _ = crops(wheel_photographs(), 5, recipe.SIDE, recipe.SEED + 200)
    wire = to_wire(pixels, recipe.INPUT)
    runs = []
    for threads in (1, 2):
        print(f"{arguments.requests} requests with {threads} threads", file=sys.stderr)
        runs.append(paired(bundle.files, calibration, graph, wire, threads, arguments.requests))
        print(json.dumps(runs[-1]), file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        net = Path(name) / "net.onnx"
        net.write_bytes(graph)
        by_clients = served(Path(name), net, rounds=4, seconds=15.0)
    result = {
        "environment": measured_in,
        "recipe": recipe.digest(),
        "in_process": runs,
        "served": by_clients,
        "start": {key: float(np.median([one[key] for one in starts])) for key in starts[0]}
        | {"runs": len(starts)},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
