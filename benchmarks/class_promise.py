"""False positives by class, where the rate is promised to all rows together or to each class.

    python -m benchmarks.class_promise --work FOLDER [--recipe fashion-strong]

FOLDER is where `python -m benchmarks.recipes` has run the recipe. The statistics of its calibration
and test images, none of which a stage has learnt from, are divided anew a hundred times.
Writes `benchmarks/results/class-promise/result.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.environment import environment
from firewall.bundle.store import open_bundle
from firewall.screening.calibration import Calibration
from firewall.screening.compiled import CompiledGuard
from firewall.screening.preprocess import to_wire
from firewall.stages.registry import Registry
from firewall.train.recipe import load
from firewall.train.sources import read, split

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "class-promise" / "result.json"
DRAWS = 100
RATES = (0.01, 0.05)


def statistics(
    compiled: CompiledGuard, wire: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Every row's statistics [N, D], and the class that the classifier names [N]."""
    values, said = [], []
    for start in range(0, len(wire), 250):
        part = np.ascontiguousarray(wire[start : start + 250])
        values.append(compiled.both(part, batch=250)[1].astype(np.float64))
        said.append(compiled.cheap(part).logits.argmax(axis=1))
    return np.concatenate(values), np.concatenate(said).astype(np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipe", default="fashion-strong")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measured_in = environment(("onnxruntime-gpu", "numpy"))
    recipe = load(ROOT / "recipes" / f"{arguments.recipe}.toml", Registry.discover())
    [draft] = (arguments.work / arguments.recipe / "steps").glob("guard-*")
    bundle = open_bundle(draft / "bundle", {(draft / "signer.pub").read_text()})
    found, sealed = read(recipe.data, ROOT / "recipes")
    parts = split(recipe.data, found, sealed)
    pixels = np.concatenate([parts[name].x for name in ("calibration", "test")])
    wire = to_wire(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), bundle.manifest.input)
    values, said = statistics(CompiledGuard(bundle.files), wire)
    calibration = Calibration.from_json(bundle.files["calibration.json"])
    half, classes = len(calibration.part_a), len(bundle.labels)
    rng = np.random.default_rng(0)
    refused = {
        (rate, promise): np.zeros((DRAWS, classes))
        for rate in RATES
        for promise in ("overall", "class")
    }
    overall = {key: np.zeros(DRAWS) for key in refused}
    for draw in range(DRAWS):
        order = rng.permutation(len(values))
        a, b, rest = order[:half], order[half : 2 * half], order[2 * half :]
        each = replace(
            calibration, part_a=values[a], part_b=values[b], said_a=said[a], said_b=said[b]
        )
        for rate in RATES:
            for promise, one in (
                ("overall", replace(each, said_a=None, said_b=None)), ("class", each),
            ):  # fmt: skip
                cascade = one.cascade(rate)
                doubt = cascade.doubt(values[rest][:, : one.cheap])
                escalated = cascade.escalates(doubt)
                scores = cascade.scores(doubt, escalated, values[rest][escalated])
                out = cascade.p_values(scores, said[rest]) <= rate
                overall[rate, promise][draw] = out.mean()
                refused[rate, promise][draw] = [out[said[rest] == k].mean() for k in range(classes)]
    result = {
        "environment": measured_in,
        "recipe": arguments.recipe,
        "bundle": bundle.manifest.name,
        "rows": len(values),
        "calibration_rows": 2 * half,
        "draws": DRAWS,
        "rates": {
            str(rate): {
                promise: {
                    "overall": float(overall[rate, promise].mean()),
                    "by_class": dict(
                        zip(
                            bundle.labels, refused[rate, promise].mean(axis=0).tolist(), strict=True
                        )
                    ),
                }
                for promise in ("overall", "class")
            }
            for rate in RATES
        },
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["rates"], indent=1), file=sys.stderr)


if __name__ == "__main__":
    main()
