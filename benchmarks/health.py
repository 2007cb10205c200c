"""Whether probes are answered in time while photographs are decoded and classified."""

from __future__ import annotations

import json
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from benchmarks.contenders import Server, firewall, image_bundle, started
from benchmarks.load import (
    Answered,
    GrpcTarget,
    HttpTarget,
    Target,
    all_opened,
    closed,
    summary,
)
from benchmarks.requests import PREDICT, grpc_image, http_request, jpeg, rest_image
from firewall.train import default_recipe as recipe
from firewall.train.photographs import crops, wheel_photographs

#: Clients that send photographs: half of them over each protocol.
CLIENTS = 8
#: Probes a second of each kind. A page of metrics costs milliseconds of processor time, and
#: Prometheus asks every few seconds.
RATE, METRICS_RATE = 50.0, 10.0
#: Sides of the photographs in pixels.
SIDES = (512, 2048)
_ACCEPTABLE = {"OK", "PERMISSION_DENIED"}


def photographs() -> list[bytes]:
    """JPEG files of several sizes."""
    held_out = wheel_photographs()
    files = []
    for side in SIDES:
        pixels, _ = crops(held_out, 4, side, recipe.SEED + 200)
        files += [jpeg(image) for image in pixels[:16]]
    return files


def probes(event: dict[str, Any]) -> dict[str, tuple[Target, float]]:
    """What orchestrators and Prometheus ask, at the ports of a `serving` event, with its rate."""
    rest, operations = (f"127.0.0.1:{event[port]}" for port in ("rest_port", "operations_port"))
    return {
        "grpc.health.v1 Check": (
            GrpcTarget(f"127.0.0.1:{event['grpc_port']}", "/grpc.health.v1.Health/Check", [b""]),
            RATE,
        ),
        "REST /v2/health/ready": (HttpTarget(rest, [http_request("/v2/health/ready")]), RATE),
        "operations /readyz": (HttpTarget(operations, [http_request("/readyz")]), RATE),
        "operations /metrics": (
            HttpTarget(operations, [http_request("/metrics")]),
            METRICS_RATE,
        ),
    }


def health(folder: Path, core: int, pool: Executor, seconds: float) -> dict[str, Any]:
    """Probe a guarded server that is idle, and again while clients send photographs.

    Args:
        folder: for bundle and log.
        core: of the server.
        pool: at least three generator processes.
        seconds: of each of the two measurements.

    """
    bundle, key = image_bundle(folder)
    files = photographs()
    place = folder / "health"
    place.mkdir()
    messages = [grpc_image(file) for file in files]
    server = Server("health", firewall(bundle, key), messages, method=PREDICT)
    with started(server, place, core) as (live, grpc_target):
        lines = (place / "audit.jsonl").read_text().splitlines()
        [event] = [one for line in lines if (one := json.loads(line))["event"] == "serving"]
        bodies = [rest_image(recipe.NAME, file) for file in files]
        loads = [grpc_target, HttpTarget(f"127.0.0.1:{event['rest_port']}", bodies)]
        asked = probes(event)
        idle = pool.submit(all_opened, asked, seconds).result()
        warming = [pool.submit(closed, target, CLIENTS // 2, 1.0) for target in loads]
        for one in warming:
            one.result()
        live.pin(core)
        running = [pool.submit(closed, target, CLIENTS // 2, seconds + 1.0) for target in loads]
        loaded = pool.submit(all_opened, asked, seconds).result()
        answered: list[Answered] = [one.result() for one in running]
    statuses = {status for one in answered for status in one.statuses}
    if not statuses <= _ACCEPTABLE:
        raise SystemExit(f"health: photographs were answered {statuses}")
    return {
        "clients": CLIENTS,
        "photographs_per_second": sum(len(one.seconds) for one in answered) / (seconds + 1.0),
        "probes": {
            name: {
                "rate": rate,
                "idle": summary(idle[name].seconds),
                "loaded": summary(loaded[name].seconds),
                "failed": sum(
                    (status != "OK" for one in (idle, loaded) for status in one[name].statuses),
                    start=idle[name].late + loaded[name].late,
                ),
            }
            for name, (_, rate) in asked.items()
        },
    }
