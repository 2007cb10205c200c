"""Floods of every port, and what a well-behaved client is answered meanwhile.

    python -m benchmarks.floods [--seconds 8] [--only NAME ...]

Each flood attacks a new `firewall serve` of a small bundle over loopback, from four other addresses
and then from the address of the well-behaved client. That client asks twenty times a second each of
`Predict` or REST inference, `grpc.health.v1` and REST readiness; an answer counts within a second,
and a retry where the server says when. The server's memory is sampled; it is killed beyond 3 GiB.
Then eight clients send photographs of 12 megapixels while health is asked.
Writes `benchmarks/results/floods/result.json`.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.environment import environment
from firewall.bundle.signing import Signer
from firewall.train.steps import write_json
from firewall.wire import firewall_pb2 as native
from tests.support import grpc_floods, http_floods
from tests.support.flooding import OTHERS, SAME, Flood, flooding
from tests.support.polite_client import PREDICT, Answers, Place, polite_clients
from tests.support.process_memory import Memory
from tests.support.served import Served, details, served
from tests.support.tiny import build_tiny

OUT = Path(__file__).parent / "results" / "floods" / "result.json"
_PHOTOGRAPHERS, _PHOTOGRAPH = 8, (3000, 4000)


def figures(answers: Mapping[str, Answers]) -> dict[str, Any]:
    """Shares and percentiles, by what was asked."""
    found = {}
    for kind, one in answers.items():
        found[kind] = {
            "sent": one.sent,
            "answered": one.share,
            "answered_at_first": one.share_of_first,
            "statuses": one.statuses,
        }
        if one.seconds:
            p50, p99 = np.percentile(one.seconds, [50, 99]) * 1000
            found[kind] |= {"p50_ms": float(p50), "p99_ms": float(p99)}
    return found


def places(server: Served, port: str) -> list[Place]:
    """What the well-behaved client asks while a port is attacked."""
    if port == "operations":
        paths = ("/healthz", "/readyz", "/metrics")
        return [Place(path, server.operations_port) for path in paths]
    asked = [Place("grpc", server.grpc_port)]
    asked += [Place("rest", server.rest_port) if port == "rest" else
              Place("check", server.grpc_port)]  # fmt: skip
    return [*asked, Place("/v2/health/ready", server.rest_port)]


def attacked(
    bundle: Path, signer: Signer, port: str, flood: Flood, addresses: Sequence[str], seconds: float
) -> dict[str, Any]:
    """Figures of one flood."""
    with (
        tempfile.TemporaryDirectory() as name,
        served(bundle, signer, Path(name), "--false-positive-rate", "0.05") as server,
        polite_clients(places(server, port)) as ask,
    ):
        number = {"grpc": server.grpc_port, "rest": server.rest_port}.get(
            port, server.operations_port
        )
        # Sessions, threads and connections are there before memory is looked at.
        ask(1.0)
        memory = Memory(server.process.pid)
        with memory.sampled():
            with flooding(flood, number, seconds, addresses):
                during = ask(seconds)
            after = ask(1.0)
    return {
        "memory_mib": {"before": memory.before, "peak": memory.peak},
        "killed": memory.killed,
        "kept_connection": figures(during.kept),
        "new_connections": figures(during.new),
        "afterwards": figures(after.kept),
    }


def _photograph() -> bytes:
    small = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    image = Image.fromarray(small).resize(_PHOTOGRAPH[::-1], Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _photographers(address: str, image: bytes, seconds: float) -> None:
    """Eight clients that send a photograph, wait for the answer, and send the next."""
    request = native.PredictRequest(
        input=native.Input(images=native.Images(encoded=[image]))
    ).SerializeToString()
    until = time.monotonic() + seconds

    def send() -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)
        with grpc.insecure_channel(address, options) as channel:
            call = channel.unary_unary(PREDICT)
            while time.monotonic() < until:
                try:
                    call(request, timeout=20)
                except grpc.RpcError as error:
                    info = details(error).get("RetryInfo")
                    time.sleep(1.0 if info is None else info.retry_delay.ToNanoseconds() / 1e9)

    threads = [threading.Thread(target=send) for _ in range(_PHOTOGRAPHERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def photographed(bundle: Path, signer: Signer, seconds: float) -> dict[str, Any]:
    """How quickly health answers while photographs are decoded and classified."""
    with (
        tempfile.TemporaryDirectory() as name,
        served(bundle, signer, Path(name), "--false-positive-rate", "0.05") as server,
        polite_clients(
            [
                Place("check", server.grpc_port),
                Place("/v2/health/ready", server.rest_port),
                Place("/readyz", server.operations_port),
                Place("/metrics", server.operations_port),
            ]
        ) as ask,
    ):
        ask(1.0)
        sender = get_context("spawn").Process(
            target=_photographers, args=(server.address, _photograph(), seconds + 20), daemon=True
        )
        memory = Memory(server.process.pid)
        with memory.sampled():
            sender.start()
            while not _predictions(server):
                time.sleep(0.1)
            before = _predictions(server)
            during = ask(seconds)
            photographs = _predictions(server) - before
            sender.kill()
            sender.join()
    return {
        "clients": _PHOTOGRAPHERS,
        "megapixels": _PHOTOGRAPH[0] * _PHOTOGRAPH[1] / 1e6,
        "photographs": photographs,
        "memory_mib": {"before": memory.before, "peak": memory.peak},
        "kept_connection": figures(during.kept),
        "new_connections": figures(during.new),
    }


def _predictions(server: Served) -> int:
    """Predictions that were answered."""
    with urllib.request.urlopen(f"{server.operations}/metrics") as page:
        families = text_string_to_metric_families(page.read().decode())
    return sum(
        int(sample.value)
        for family in families
        for sample in family.samples
        if sample.name == "grpc_server_handled_total"
        and sample.labels["grpc_method"] == "Predict"
        and sample.labels["grpc_code"] == "OK"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--only", nargs="*", default=[], help="names of floods")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measured_in = environment(("grpcio", "uvicorn", "httptools", "h2"))
    floods: list[dict[str, Any]] = []
    signer = Signer.generate()
    with tempfile.TemporaryDirectory() as name:
        bundle = build_tiny(Path(name) / "tiny", signer)
        for port, table in (
            ("grpc", grpc_floods.FLOODS),
            ("rest", http_floods.FLOODS),
            ("operations", http_floods.OPERATIONS),
        ):
            for flood, attack in table.items():
                if arguments.only and flood not in arguments.only:
                    continue
                for origin, addresses in (("others", OTHERS), ("same", SAME)):
                    found = attacked(bundle, signer, port, attack, addresses, arguments.seconds)
                    floods.append({"port": port, "flood": flood, "from": origin} | found)
                    _say(floods[-1])
        photographs = None if arguments.only else photographed(bundle, signer, arguments.seconds)
    result = {
        "environment": measured_in,
        "seconds": arguments.seconds,
        "floods": floods,
        "photographs": photographs,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, result)
    print(json.dumps(photographs, indent=1), file=sys.stderr)


def _say(row: Mapping[str, Any]) -> None:
    answered = {kind: f"{one['answered']:.1%}" for kind, one in row["kept_connection"].items()}
    print(
        f"{row['port']}: {row['flood']} from {row['from']}: {row['memory_mib']['peak']:.0f} MiB, "
        f"answered {answered}",
        file=sys.stderr, flush=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
