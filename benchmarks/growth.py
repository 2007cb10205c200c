"""What a guarded request costs as plugins grow from one to twelve.

    python -m benchmarks.growth [--requests 1500]

Guards of the small classifier with 1, 2, ... 12 plugins, each calibrated; one clean row a request,
in one process, guarded and bare in turn. Writes `benchmarks/results/growth/`: result.json and
growth.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.environment import environment
from benchmarks.small import small_bundle, small_classifier
from firewall.bundle.signing import Signer
from firewall.bundle.spec import GuardSpec, StageSpec
from firewall.bundle.store import open_bundle
from firewall.screening.calibration import Calibration
from firewall.screening.compiled import CompiledGuard
from firewall.screening.live import LiveGuard
from firewall.screening.policy import Policy
from firewall.screening.session import open_session
from firewall.train.steps import write_json

OUT = Path(__file__).parent / "results" / "growth"
COUNTS = (1, 2, 3, 4, 6, 8, 10, 12)
WARM = 50
#: In this order.
STAGES = (
    StageSpec(kind="detector", name="feature-norm", plugin="feature-norm"),
    StageSpec(kind="detector", name="mahalanobis", plugin="mahalanobis"),
    StageSpec(kind="denoiser", name="blur", plugin="gaussian-blur"),
    StageSpec(kind="detector", name="view-consistency", plugin="view-consistency"),
    StageSpec(kind="denoiser", name="bit-depth", plugin="bit-depth"),
    StageSpec(kind="ensemble", name="log-average", plugin="log-average"),
    StageSpec(kind="detector", name="noise-floor", plugin="noise-floor"),
    StageSpec(kind="denoiser", name="median", plugin="median"),
    StageSpec(kind="detector", name="feature-squeezing", plugin="feature-squeezing"),
    StageSpec(kind="detector", name="neighbours", plugin="nearest-neighbours"),
    StageSpec(kind="denoiser", name="wide-blur", plugin="gaussian-blur", config={"sigma": 2.0}),
    StageSpec(kind="denoiser", name="coarse", plugin="bit-depth", config={"bits": 5}),
)


def exponent(counts: tuple[int, ...], costs: list[float]) -> float:
    """Of the power of the number of plugins that costs grow with."""
    slope, _ = np.polyfit(np.log(counts), np.log(costs), 1)
    return float(slope)


def in_turn(guard: LiveGuard, bare: ort.InferenceSession, rows: list[Any], requests: int) -> Any:
    """Mean microseconds of a guarded request and of a bare one."""
    spent: dict[str, list[float]] = {"guarded": [], "bare": []}
    name = bare.get_inputs()[0].name
    escalated = 0
    for number in range(requests + WARM):
        one = rows[number % len(rows)]
        start = time.perf_counter()
        bare.run(None, {name: one})
        middle = time.perf_counter()
        [decision] = guard.screen(one, [guard.plan("")]).decisions
        spent["guarded"].append(time.perf_counter() - middle)
        spent["bare"].append(middle - start)
        escalated += decision.escalated
    mean = {key: 1e6 * float(np.mean(values[WARM:])) for key, values in spent.items()}
    p50 = {key: 1e6 * float(np.median(values[WARM:])) for key, values in spent.items()}
    return {
        "mean_us": mean["guarded"], "p50_us": p50["guarded"],
        "bare_mean_us": mean["bare"], "bare_p50_us": p50["bare"],
        "mean_over_bare": mean["guarded"] / mean["bare"],
        "p50_over_bare": p50["guarded"] / p50["bare"],
        "escalated": escalated / (requests + WARM),
    }  # fmt: skip


def draw(found: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    counts = [int(one) for one in found]
    costs = [one["mean_over_bare"] for one in found.values()]
    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    axes.plot(counts, costs, marker="o", color="#2a6f97", label="mean, clean traffic")
    medians = [one["p50_over_bare"] for one in found.values()]
    axes.plot(counts, medians, marker="o", color="#a9d6e5", label="median")
    axes.plot(counts, [costs[0] * one for one in counts], color="#b0b7bd", ls="--", label="linear")
    axes.set_ylim(0, 1.25 * max(costs))
    axes.set_xlabel("plugins")
    axes.set_ylabel("guarded ÷ bare")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measured_in = environment(("onnxruntime-gpu", "numpy"))
    signer = Signer.generate()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = small_classifier(folder)
        bare = open_session("bare.onnx", small.onnx, 1, "cpu")
        rows = [np.ascontiguousarray(one[None]) for one in small.clean[2000:3000]]
        for count in COUNTS:
            path = small_bundle(
                small, folder / f"{count}", signer, GuardSpec(stages=STAGES[:count])
            )
            bundle = open_bundle(path, {signer.public})
            guard = LiveGuard(
                CompiledGuard(bundle.files, threads=1),
                Calibration.from_json(bundle.files["calibration.json"]),
                Policy(),
                model="small",
                log_outputs=bool(bundle.manifest.guard.of("ensemble")),
            )
            found[f"{count}"] = in_turn(guard, bare, rows, arguments.requests)
            print(count, json.dumps(found[f"{count}"]), file=sys.stderr)
    result = {
        "environment": measured_in,
        "requests": arguments.requests,
        "plugins": [stage.plugin for stage in STAGES],
        "cost": found,
        "exponent": exponent(COUNTS, [one["mean_us"] for one in found.values()]),
        "twelve_over_one": found["12"]["mean_us"] / found["1"]["mean_us"],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "result.json", result)
    draw(found, arguments.out / "growth.png")


if __name__ == "__main__":
    main()
