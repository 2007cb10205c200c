"""What the sidecar adds in front of each real server, beside that server alone.

    python -m benchmarks.sidecar [--seconds 6] [--protocols grpc rest]
    python -m benchmarks.sidecar --photographs PHOTOS --model open-nsfw.onnx --peers mlserver

The small classifier of `benchmarks.small` in MLServer, KServe's Python server and Triton (through
PyTriton), each installed into an environment of its own; `firewall guard URL` makes the guard. With
`--photographs`, a classifier of photographs in an ONNX file instead, described by `--describe`.

Over gRPC all the way, and over REST all the way (binary tensors where the server has them). Bare
and guarded in turn, one client and eight, clean images that the guard accepts; server, firewall and
generator share the machine's cores as in a pod. Where a request's time went is read from
`firewall_stage_seconds`, with one client.
Writes `benchmarks/results/sidecar/result.json`, with `--photographs` `photographs.json` there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.environment import environment
from benchmarks.load import Answered, GrpcTarget, HttpTarget, Target, closed, generators, summary
from benchmarks.requests import INFER, grpc_tensor, rest_json, rest_tensor
from benchmarks.scrape import Stages, stage_seconds
from benchmarks.small import CLASSES, SHAPE, small_classifier
from firewall.bundle.signing import user_signer
from firewall.cli.describing import source_options
from firewall.client import OpenInferenceClient
from firewall.errors import Refused
from firewall.screening.preprocess import to_wire
from firewall.sources.plan import inspect
from firewall.sources.source import open_source
from firewall.train.steps import write_json
from tests.support.peers import PREPARED, running_peer
from tests.support.served import served

OUT = Path(__file__).parent / "results" / "sidecar" / "result.json"
CALIBRATED, SENT, ROUNDS, CLIENTS = 2000, 64, 3, (1, 8)
PROTOCOLS = ("grpc", "rest")


def spent(before: Stages, after: Stages) -> dict[str, float]:
    """Mean milliseconds of a request's stages between two readings, each without those within."""

    def mean(name: str) -> float:
        first, last = before.get(name, (0.0, 0.0)), after.get(name, (0.0, 0.0))
        # Divided by all requests, whether they came to this stage or not.
        return 1e3 * (last[0] - first[0]) / (after["call"][1] - before["call"][1])

    return {
        "queue": mean("queue"),
        "call to the server": mean("upstream"),
        "cheap statistics": mean("cheap") - mean("upstream"),
        "views of doubtful rows, asked and compared": mean("expensive"),
        "decision": mean("guard") - mean("cheap") - mean("expensive"),
        "rest of the handler": mean("call") - mean("queue") - mean("guard"),
    }


@dataclass(frozen=True)
class Case:
    """What is served and asked.

    Attributes:
        net: ONNX file.
        shape: of a row.
        classes: how many.
        clean: [N, *shape] float32 rows for the guard.
        other: [M, *shape] float32 rows that clients send.
        describe: flags of `firewall guard`.

    """

    net: Path
    shape: tuple[int, int, int]
    classes: int
    clean: npt.NDArray[np.float32]
    other: npt.NDArray[np.float32]
    describe: tuple[str, ...]


def small_case(folder: Path) -> Case:
    """The small classifier, on images that it has not seen."""
    small = small_classifier(folder)
    net = folder / "net.onnx"
    net.write_bytes(small.onnx)
    clean, other = small.clean[:CALIBRATED], small.clean[CALIBRATED:]
    return Case(net, SHAPE, CLASSES, clean, other, ("--preset", "zero-one"))


def photograph_case(net: Path, photographs: Path, describe: tuple[str, ...]) -> Case:
    """A classifier of photographs; every other one is for the guard."""
    options = source_options(
        **{
            flag.removeprefix("--").replace("-", "_"): value
            for flag, value in zip(describe[::2], describe[1::2], strict=True)
        }
    )
    plan = inspect(
        open_source(str(net), options, None), options, [photographs], 2000, lambda line: None
    )
    wire = to_wire(plan.images.pixels, plan.spec).astype(np.float32)
    shape = plan.source.row_shape
    classes = plan.checked.scores.classes
    return Case(net.resolve(), shape, classes, wire[::2], wire[1::2], describe)


def accepted(address: str, case: Case) -> list[Any]:
    """Rows [1, *shape] that the guard accepts."""
    found: list[Any] = []
    with OpenInferenceClient(address, model="peer") as client:
        # The server listens before it has asked the classifier about the self-test's images.
        for _ in range(600):
            if client.ready():
                break
            time.sleep(0.1)
        for image in case.other:
            try:
                client.infer({"image": image[None]})
            except Refused:
                continue
            found.append(image[None])
            if len(found) == SENT:
                break
    return found


def measured(
    name: str,
    protocol: str,
    case: Case,
    folder: Path,
    pool: Executor,
    seconds: float,
) -> dict[str, Any]:
    """Measure one server alone and guarded, over one protocol."""
    with running_peer(name, case.net, folder, case.shape, case.classes) as peer:
        url = peer.url(protocol)
        np.savez(folder / "clean.npz", x=case.clean)
        subprocess.run(
            [sys.executable, "-m", "firewall", "guard", url, str(folder / "clean.npz"),
             *case.describe, "--minutes", "0.01", "--out", str(folder / "bundle")],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        guard = served(folder / "bundle", user_signer(), folder, "--upstream", url)
        with guard as firewall:
            images = accepted(firewall.address, case)
            targets: dict[str, Target]
            if protocol == "grpc":
                messages = [grpc_tensor("peer", "image", image) for image in images]
                targets = {
                    "bare": GrpcTarget(f"127.0.0.1:{peer.port}", INFER, messages),
                    "guarded": GrpcTarget(firewall.address, INFER, messages),
                }
            else:
                binary = [rest_tensor("peer", "image", image) for image in images]
                # MLServer's REST API has no binary tensors.
                text = [rest_json("peer", "image", image) for image in images]
                bare = text if name == "mlserver" else binary
                targets = {
                    "bare": HttpTarget(f"127.0.0.1:{peer.http_port}", bare),
                    "guarded": HttpTarget(f"127.0.0.1:{firewall.rest_port}", binary),
                }
            return compared(targets, firewall.operations_port, pool, seconds)


def compared(
    targets: Mapping[str, Target], operations_port: int, pool: Executor, seconds: float
) -> dict[str, Any]:
    """Load both in turn; what the guard adds, and where a guarded request's time went."""

    def run(target: Target, clients: int, lasts: float) -> list[float]:
        found: Answered = pool.submit(closed, target, clients, lasts).result()
        if set(found.statuses) != {"OK"}:
            raise SystemExit(f"{target.address}: answered {set(found.statuses)}")
        return found.seconds

    for target in targets.values():
        run(target, 8, 2.0)
    result: dict[str, Any] = {}
    for clients in CLIENTS:
        kept: dict[str, list[float]] = {which: [] for which in targets}
        before = stage_seconds(operations_port)
        for _ in range(ROUNDS):
            for which, target in targets.items():
                kept[which] += run(target, clients, seconds)
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
            found["stages_ms"] = spent(before, stage_seconds(operations_port))
        result[f"{clients}"] = found
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS))
    parser.add_argument("--peers", nargs="+", choices=sorted(PREPARED), default=sorted(PREPARED))
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--model", type=Path, help="with --photographs: ONNX file")
    parser.add_argument("--describe", nargs="+", default=["preset=caffe-bgr"], help="FLAG=VALUE")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    measured_in = environment(("onnxruntime-gpu", "grpcio", "numpy"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["FIREWALL_CONFIG_DIR"] = str(folder / "config")
        if arguments.photographs is None:
            case, out = small_case(folder), arguments.out or OUT
        else:
            flags = [part for one in arguments.describe for part in one.split("=", 1)]
            described = tuple(f"--{p}" if n % 2 == 0 else p for n, p in enumerate(flags))
            case = photograph_case(arguments.model, arguments.photographs, described)
            out = arguments.out or OUT.with_name("photographs.json")
        found: dict[str, Any] = {}
        with generators(1, os.sched_getaffinity(0)) as pool:
            for protocol in arguments.protocols:
                for peer in arguments.peers:
                    name = peer if protocol == "grpc" else f"{peer}, REST"
                    place = folder / f"{peer}-{protocol}"
                    place.mkdir()
                    found[name] = measured(peer, protocol, case, place, pool, arguments.seconds)
                    print(name, json.dumps(found[name]), file=sys.stderr)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        out,
        {
            "environment": measured_in,
            "calibrated_on": len(case.clean),
            "seconds": ROUNDS * arguments.seconds,
            "clients": found,
        },
    )


if __name__ == "__main__":
    main()
