"""A guarded clean photograph beside a bare one, in one process and in turn."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.latency import Bare, summary
from firewall.bundle.signing import Signer
from firewall.bundle.store import open_bundle
from firewall.decoding.decode import decode_image
from firewall.guard.compile import example, export
from firewall.screening.calibration import Calibration
from firewall.screening.compiled import CompiledGuard
from firewall.screening.live import LiveGuard
from firewall.screening.policy import Policy
from firewall.screening.preprocess import to_wire
from firewall.screening.session import open_session
from firewall.train import default_recipe as recipe
from firewall.train.default_bundle import build_default
from firewall.train.photographs import crops, wheel_photographs

WARM = 20
#: Side of the JPEG files in pixels: larger than the classifier's input, so they are scaled down.
SIDE = 512


def in_process(folder: Path, requests: int) -> tuple[list[dict[str, Any]], Path]:
    """Measure tensors and JPEG bytes by threads; returns the figures and the bare graph's file."""
    signer = Signer.generate()
    build_default(folder / "in-process", signer, lambda step: None)
    bundle = open_bundle(folder / "in-process", {signer.public})
    graph = export(Bare().eval(), {"wire": example(recipe.INPUT, 2)}, ["logits"])
    net = folder / "image-net.onnx"
    net.write_bytes(graph)
    torch.set_num_threads(1)
    photographs = wheel_photographs()
    pixels, _ = crops(photographs, 5, recipe.SIDE, recipe.SEED + 200)
    wire = to_wire(pixels, recipe.INPUT)
    large, _ = crops(photographs, 2, SIDE, recipe.SEED + 200)
    files = [jpeg(one) for one in large]
    calibration = Calibration.from_json(bundle.files["calibration.json"])
    found = []
    for threads in (1, 2):
        bare = open_session("bare.onnx", graph, threads, "cpu")
        guard = LiveGuard(
            CompiledGuard(bundle.files, threads=threads), calibration, Policy(), model="m",
            log_outputs=True,
        )  # fmt: skip

        def alone(one: Any, bare: Any = bare) -> None:
            bare.run(None, {"wire": one})

        def guarded(one: Any, guard: LiveGuard = guard) -> None:
            guard.screen(one, [guard.plan("")])

        rows = [np.ascontiguousarray(wire[row : row + 1]) for row in range(len(wire))]
        found.append(
            {
                "threads": threads,
                "tensor": in_turn(rows, alone, guarded, requests),
                "jpeg": in_turn(
                    files,
                    lambda data, run=alone: run(decoded(data)),
                    lambda data, run=guarded: run(decoded(data)),
                    requests,
                ),
            }
        )
    return found, net


def jpeg(pixels: np.ndarray) -> bytes:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "JPEG", quality=92)
    return held.getvalue()


def decoded(data: bytes) -> np.ndarray:
    one = decode_image(data, recipe.INPUT, recipe.PREPROCESSING, field="image")
    return to_wire(one[None], recipe.INPUT)


def in_turn(
    inputs: Sequence[Any],
    bare: Callable[[Any], None],
    guarded: Callable[[Any], None],
    requests: int,
) -> dict[str, Any]:
    """Time both on the same inputs; which of the two goes first alternates."""
    order = np.random.default_rng(0).integers(0, len(inputs), requests + WARM)
    spent: dict[str, list[float]] = {"bare": [], "guarded": []}
    ways = {"bare": bare, "guarded": guarded}
    for number, row in enumerate(order):
        for name in ("bare", "guarded") if number % 2 else ("guarded", "bare"):
            start = time.perf_counter()
            ways[name](inputs[row])
            spent[name].append(time.perf_counter() - start)
    figures: dict[str, Any] = {
        name: summary(np.array(values[WARM:])) for name, values in spent.items()
    }
    figures["ratio"] = {
        key.removesuffix("_ms"): figures["guarded"][key] / figures["bare"][key]
        for key in ("p50_ms", "p95_ms", "mean_ms")
    }
    return figures
