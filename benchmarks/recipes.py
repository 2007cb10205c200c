"""Runs recipes for real and keeps what they gave.

    python -m benchmarks.recipes NAME... [--work FOLDER] [--jobs 2]

Writes `benchmarks/results/NAME/` with the run's evaluation.json and report; interrupted, it goes on
where it was.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.environment import environment
from benchmarks.imagenet_default import publish, say
from firewall.bundle.signing import Signer
from firewall.stages.registry import Registry
from firewall.train.pipeline import run
from firewall.train.recipe import load

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--work", type=Path, help="folder for what is done so far")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    measured_in = environment(("torch", "onnx", "numpy", "foolbox", "scikit-learn"))
    work = arguments.work or Path(tempfile.mkdtemp())
    registry = Registry.discover()
    for name in arguments.names:
        recipe = ROOT / "recipes" / f"{name}.toml"
        done = run(
            load(recipe, registry),
            recipe.parent,
            work / name,
            Signer.generate(),
            registry,
            device=arguments.device,
            jobs=arguments.jobs,
            progress=lambda line, name=name: say(f"{name}: {line}"),  # type: ignore[misc]
        )
        assert done is not None
        # Once is enough; the date is the evaluation's, however often it is resumed.
        date = done.summary["evaluation"].pop("environment")["date"]
        result = done.summary | {"environment": measured_in | {"date": date}}
        print(f"{name}: {done.bundle}", file=sys.stderr)
        publish(result, work / name / "report.html", arguments.out / name)


if __name__ == "__main__":
    main()
