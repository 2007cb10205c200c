"""A guard on the first day: from one command on somebody's file to a guarded answer.

    python -m benchmarks.first_day --model open-nsfw.onnx --photographs PHOTOS

400 photographs, every setting as it comes but the description (`--describe preset=caffe-bgr`): how
long it takes, what the card says, and the first answer of a server. Writes
`benchmarks/results/first-day/result.json`.
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

from benchmarks.environment import environment
from firewall.bundle.signing import user_signer
from firewall.client import Client
from firewall.train.steps import write_json
from tests.support.served import served

OUT = Path(__file__).parent / "results" / "first-day" / "result.json"
IMAGES = 400


def main() -> None:
    """Run the command, serve, ask."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--describe", nargs="+", default=["preset=caffe-bgr"], help="FLAG=VALUE")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    flags = [part for one in arguments.describe for part in f"--{one}".split("=", 1)]
    measured_in = environment(("onnxruntime-gpu", "torch", "numpy"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["FIREWALL_CONFIG_DIR"] = str(folder / "config")
        bundle = folder / "guard"
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "firewall", "guard", str(arguments.model),
             str(arguments.photographs), *flags, "--images-limit", str(IMAGES), "--out",
             str(bundle), "--json"],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        seconds = time.monotonic() - begun
        told = json.loads(done.stdout.splitlines()[-1])
        serving = folder / "serving"
        serving.mkdir()
        photo = sorted(arguments.photographs.rglob("*.png"))[0]
        with served(bundle, user_signer(), serving) as server, Client(server.address) as client:
            [answer] = client.predict([photo])
            whole = time.monotonic() - begun
        card = (bundle / "MODEL_CARD.md").read_text(encoding="utf-8")
    del told["bundle"], told["report"], told["sample"]
    told["source"] = arguments.model.name
    told["evaluation"].pop("environment", None)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        arguments.out,
        {
            "environment": measured_in,
            "images": IMAGES,
            "flags": flags,
            "command_seconds": seconds,
            "seconds_to_an_answer": whole,
            "answer": answer.verdict.value,
            "told": told,
        },
    )
    (arguments.out.parent / "MODEL_CARD.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
