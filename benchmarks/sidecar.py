"""What the sidecar adds in front of each real server, beside that server alone.

    python -m benchmarks.sidecar [--seconds 6]

The small classifier of `benchmarks.small` in MLServer, KServe's Python server and Triton (through
PyTriton), each installed into an environment of its own; `firewall calibrate --upstream` makes the
guard, with its own stages. Bare and guarded in turn, one client and eight, clean images that the
guard accepts; server, firewall and generator share the machine's cores as in a pod. Where a
request's time went is read from `firewall_stage_seconds`, with one client.
Writes `benchmarks/results/sidecar/result.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.environment import environment
from benchmarks.load import Answered, Target, closed, generators, summary
from benchmarks.small import CLASSES, SHAPE, Small, small_classifier
from firewall.bundle.signing import user_signer
from firewall.client import OpenInferenceClient
from firewall.errors import Refused
from firewall.train.steps import write_json
from firewall.wire import open_inference_pb2 as oip
from tests.support.peers import PREPARED, peer
from tests.support.served import Served, served

OUT = Path(__file__).parent / "results" / "sidecar" / "result.json"
_METHOD = "/inference.GRPCInferenceService/ModelInfer"
CALIBRATED, ASKED, ROUNDS, CLIENTS = 2000, 64, 3, (1, 8)


def message(image: Any) -> bytes:
    request = oip.ModelInferRequest(model_name="peer")
    request.inputs.add(name="image", datatype="FP32", shape=(1, *SHAPE))
    request.raw_input_contents.append(image.tobytes())
    return request.SerializeToString()


def stages(port: int) -> dict[str, tuple[float, float]]:
    """Seconds and count of each stage so far, and of whole calls."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as found:
        families = text_string_to_metric_families(found.read().decode())
    said: dict[str, dict[str, float]] = {}
    for family in families:
        for sample in family.samples:
            base, _, kind = sample.name.rpartition("_")
            if kind not in ("sum", "count"):
                continue
            if base == "firewall_stage_seconds":
                said.setdefault(sample.labels["stage"], {})[kind] = sample.value
            if base == "grpc_server_handling_seconds" and (
                sample.labels["grpc_method"] == "ModelInfer"
            ):
                said.setdefault("call", {})[kind] = sample.value
    return {name: (one["sum"], one["count"]) for name, one in said.items()}


def spent(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """Mean milliseconds of a request's stages between two looks, each without what is within it."""

    def mean(name: str) -> float:
        first, last = before.get(name, (0.0, 0.0)), after.get(name, (0.0, 0.0))
        # Of every request, whether it came to this stage or not.
        return 1e3 * (last[0] - first[0]) / (after["call"][1] - before["call"][1])

    return {
        "decode": mean("decode"),
        "queue": mean("queue"),
        "graphs before and after the call": mean("cheap") - mean("upstream"),
        "call to the server, all views": mean("upstream"),
        "decision": mean("guard") - mean("cheap") - mean("expensive"),
        "rest of the handler": mean("call") - mean("decode") - mean("queue") - mean("guard"),
    }


def accepted(address: str, small: Small) -> list[bytes]:
    """Requests that the guard answers."""
    found = []
    with OpenInferenceClient(address, model="peer") as client:
        for image in small.clean[CALIBRATED:]:
            try:
                client.infer({"image": image[None]})
            except Refused:
                continue
            found.append(message(image))
            if len(found) == ASKED:
                break
    return found


def measured(
    name: str, small: Small, net: Path, folder: Path, pool: Executor, seconds: float
) -> dict[str, Any]:
    """One server."""
    with peer(name, net, folder, SHAPE, CLASSES) as address:
        url = f"grpc://{address}/peer"
        np.savez(folder / "clean.npz", x=small.clean[:CALIBRATED])
        subprocess.run(
            [sys.executable, "-m", "firewall", "calibrate", str(folder / "clean.npz"),
             "--upstream", url, "--out", str(folder / "bundle")],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        guard = served(folder / "bundle", user_signer(), folder, "--upstream", url)
        with guard as firewall:
            requests = accepted(firewall.address, small)
            return compared(address, firewall, requests, pool, seconds)


def compared(
    address: str, firewall: Served, requests: list[bytes], pool: Executor, seconds: float
) -> dict[str, Any]:
    def run(where: str, clients: int, lasts: float) -> list[float]:
        found: Answered = pool.submit(
            closed, Target(where, _METHOD, requests), clients, lasts
        ).result()
        if set(found.statuses) != {"OK"}:
            raise SystemExit(f"{where}: answered {set(found.statuses)}")
        return found.seconds

    places = {"bare": address, "guarded": firewall.address}
    for where in places.values():
        run(where, 8, 2.0)
    result: dict[str, Any] = {}
    for clients in CLIENTS:
        kept: dict[str, list[float]] = {which: [] for which in places}
        before = stages(firewall.http_port)
        for _ in range(ROUNDS):
            for which, where in places.items():
                kept[which] += run(where, clients, seconds)
        found: dict[str, Any] = {
            which: summary(one) | {"per_second": len(one) / (ROUNDS * seconds)}
            for which, one in kept.items()
        }
        found["added_p50_ms"] = found["guarded"]["p50_ms"] - found["bare"]["p50_ms"]
        found["guarded_over_bare_p50"] = found["guarded"]["p50_ms"] / found["bare"]["p50_ms"]
        found["guarded_over_bare_per_second"] = (
            found["guarded"]["per_second"] / found["bare"]["per_second"]
        )
        if clients == 1:
            found["stages_ms"] = spent(before, stages(firewall.http_port))
        result[f"{clients}"] = found
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--peers", nargs="+", choices=sorted(PREPARED), default=sorted(PREPARED))
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measured_in = environment(("onnxruntime-gpu", "grpcio", "numpy"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["FIREWALL_CONFIG_DIR"] = str(folder / "config")
        small = small_classifier(folder)
        net = folder / "net.onnx"
        net.write_bytes(small.onnx)
        found: dict[str, Any] = {}
        with generators(1, os.sched_getaffinity(0)) as pool:
            for each in arguments.peers:
                place = folder / each
                place.mkdir()
                found[each] = measured(each, small, net, place, pool, arguments.seconds)
                print(each, json.dumps(found[each]), file=sys.stderr)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        arguments.out,
        {
            "environment": measured_in,
            "calibrated_on": CALIBRATED,
            "seconds": ROUNDS * arguments.seconds,
            "clients": found,
        },
    )


if __name__ == "__main__":
    main()
