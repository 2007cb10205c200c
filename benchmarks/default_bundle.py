"""False positives and detection of the default bundle, on photographs that took no part in it.

    python -m benchmarks.default_bundle [--photographs FILE...]

Writes `benchmarks/results/default-bundle/result.json`, from which the model card and the README's
tables are rendered. Oblivious attackers attack the bare classifier; the adaptive one optimises
through the graphs that are served.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.environment import environment
from firewall.attack.adaptive import Adaptive, Evasion
from firewall.attack.gradient import GradientAttack, fgsm, pgd
from firewall.attack.served_guard import ServedGuard
from firewall.bundle.signing import Signer
from firewall.bundle.store import open_bundle
from firewall.evaluation.measure import auroc, cluster_interval, false_positives
from firewall.screening.calibration import Calibration
from firewall.screening.compiled import CompiledGuard
from firewall.screening.preprocess import to_wire
from firewall.train import default_recipe as recipe
from firewall.train.build import Measured, measure_rows
from firewall.train.default_bundle import build_default
from firewall.train.efficientnet import EfficientNetLite0
from firewall.train.photographs import Photograph, crops, split, wheel_photographs

OUT = Path(__file__).parent / "results" / "default-bundle" / "result.json"
#: The target of the aimed attack: common iguana.
TARGET = 39
#: Crops that the adaptive attacker works on, of each photograph.
ADAPTIVE_EACH = 1


@dataclass(frozen=True)
class Oblivious:
    """An attack on the bare classifier.

    Attributes:
        name: for tables.
        radius: in 255ths, before what `sent` does.
        run: images, labels or targets, and a seed to forged images.
        aimed: at the iguana.
        sent: what happens to the eight-bit pixels [N, H, W, 3] on their way.
    """

    name: str
    radius: int
    run: GradientAttack
    aimed: bool = False
    sent: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels
    stops: bool = False


def as_jpeg(pixels: np.ndarray) -> np.ndarray:
    """Saved at quality 85 and opened again, as most pictures are."""
    out = []
    for one in pixels:
        buffer = io.BytesIO()
        Image.fromarray(one).save(buffer, "JPEG", quality=85)
        out.append(np.asarray(Image.open(buffer)))
    return np.stack(out)


OBLIVIOUS = (
    *(Oblivious("FGSM", radius, fgsm(radius / 255)) for radius in (1, 2, 4, 8)),
    *(Oblivious("PGD-10", radius, pgd(radius / 255, 10)) for radius in (2, 4, 8)),
    Oblivious("PGD-10, stopped once it fools", 4, pgd(4 / 255, 10), stops=True),
    Oblivious("PGD-10, sent as JPEG 85", 4, pgd(4 / 255, 10), sent=as_jpeg),
    Oblivious("PGD-10, sent as JPEG 85", 8, pgd(8 / 255, 10), sent=as_jpeg),
    Oblivious("aimed PGD-20", 4, GradientAttack(4 / 255, steps=20, step=1 / 255), aimed=True),
)


def until_fooled(
    logits: Callable[[torch.Tensor], torch.Tensor],
    attack: GradientAttack,
    x: torch.Tensor,
    label: torch.Tensor,
    seed: int,
) -> torch.Tensor:
    """The attack's path, left as soon as the eight-bit picture fools, row by row."""
    result = x.clone()
    standing = torch.ones(len(x), dtype=torch.bool)
    for steps in range(1, attack.steps + 1):
        shorter = replace(attack, steps=steps, step=attack.step)
        found = shorter(logits, x[standing], label[standing], seed=seed)
        result[standing] = found
        with torch.no_grad():
            said = logits((found * 255).round() / 255).argmax(dim=1)
        where = standing.nonzero()[:, 0]
        standing[where[said != label[standing]]] = False
        if not standing.any():
            break
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=Path, nargs="*", default=[])
    parser.add_argument("--crops", type=int, default=8, help="clean crops of each photograph")
    parser.add_argument("--attacked", type=int, default=4, help="attacked crops of each photograph")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    start = time.monotonic()
    measured_in = environment(("torch", "onnxruntime-gpu", "onnx", "numpy", "pillow"))

    def say(text: str) -> None:
        print(f"{time.monotonic() - start:7.1f} s  {text}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        signer = Signer.generate()
        place = Path(folder) / "bundle"
        build_default(place, signer, say)
        bundle = open_bundle(place, {signer.public})
    compiled = CompiledGuard(bundle.files)
    calibration = Calibration.from_json(bundle.files["calibration.json"])

    def screened(pixels: np.ndarray) -> Measured:
        return measure_rows(compiled, calibration, to_wire(pixels, recipe.INPUT), True)

    held_out = split(wheel_photographs())["held-out"]
    extra = [Photograph.at(path) for path in sorted(arguments.photographs, key=lambda p: p.name)]
    sets = {"held-out photographs": held_out}
    if extra:
        sets["other photographs"] = extra
    seed = recipe.SEED + 100
    clean: dict[str, Any] = {}
    for number, (name, photographs) in enumerate(sets.items()):
        say(f"false positives on {name}")
        pixels, groups = crops(photographs, arguments.crops, recipe.SIDE, seed + number)
        clean[name] = false_positives(screened(pixels).p_values, groups)

    attacked, groups = crops([*held_out, *extra], arguments.attacked, recipe.SIDE, seed + 10)
    clean_rows = screened(attacked)
    x = torch.from_numpy(attacked.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    classifier = EfficientNetLite0()

    def logits(batch: torch.Tensor) -> torch.Tensor:
        return classifier(batch).logits

    def said(pixels: np.ndarray) -> np.ndarray:
        """Top class of the bare classifier."""
        batch = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)
        with torch.no_grad():
            return torch.cat([logits(part).argmax(dim=1) for part in batch.split(16)]).numpy()

    labels = torch.from_numpy(said(attacked))

    def entry(
        name: str, knowledge: str, radius: int, pixels: np.ndarray, rows: slice, aimed: bool
    ) -> dict[str, Any]:
        bare, truth = said(pixels), labels[rows].numpy()
        fooled = (bare == TARGET) if aimed else (bare != truth)
        rows_said = screened(pixels)
        # Wrong is what the guard would answer, not what the bare classifier would.
        answered = clean_rows.labels[rows]
        wrong = (rows_said.labels == TARGET) if aimed else (rows_said.labels != answered)
        p = rows_said.p_values
        through = wrong & (p > 0.01)
        return {
            "name": name,
            "knowledge": knowledge,
            "norm": "linf",
            "radius_255": radius,
            "rows": len(pixels),
            "success_rate": float(fooled.mean()),
            "auroc": auroc(clean_rows.scores[rows], rows_said.scores),
            "detected_at": {str(rate): float((p <= rate).mean()) for rate in (0.01, 0.05)},
            "detected_at_interval": {
                str(rate): cluster_interval(p <= rate, groups[rows]) for rate in (0.01, 0.05)
            },
            "fooled_and_accepted": float(through.mean()),
            "fooled_and_accepted_interval": cluster_interval(through, groups[rows]),
        }

    entries: list[dict[str, Any]] = []
    everything = slice(None)
    for one in OBLIVIOUS:
        say(f"{one.name} {one.radius}/255 on {len(x)} crops")
        goal = torch.full_like(labels, TARGET) if one.aimed else labels
        forged = torch.cat(
            [
                until_fooled(logits, one.run, part, part_goal, number)
                if one.stops
                else one.run(logits, part, part_goal, aimed=one.aimed, seed=number)
                for number, (part, part_goal) in enumerate(
                    zip(x.split(16), goal.split(16), strict=True)
                )
            ]
        )
        # As it would be sent: eight bits a channel.
        pixels = (forged * 255).round().to(torch.uint8).numpy().transpose(0, 2, 3, 1)
        pixels = one.sent(np.ascontiguousarray(pixels))
        entries.append(entry(one.name, "oblivious", one.radius, pixels, everything, one.aimed))
        say(json.dumps(entries[-1]))

    guard = ServedGuard.of(bundle, calibration)
    cascade = calibration.cascade(0.01)
    evasion = Evasion.of(guard, cascade, "cheap")
    rows = slice(None, None, arguments.attacked // ADAPTIVE_EACH)
    for radius in (2, 4, 8):
        say(f"adaptive {radius}/255 on {len(x[rows])} crops")
        attack = Adaptive(radius / 255, steps=100)
        forged = torch.cat(
            [
                attack(guard, part, label, evasion)
                for part, label in zip(x[rows].split(8), labels[rows].split(8), strict=True)
            ]
        )
        pixels = (forged * 255).round().to(torch.uint8).numpy().transpose(0, 2, 3, 1)
        pixels = np.ascontiguousarray(pixels)
        entries.append(
            entry("adaptive, past the cheap tier", "adaptive", radius, pixels, rows, False)
        )
        say(json.dumps(entries[-1]))
    result = {
        "environment": measured_in,
        "recipe": recipe.digest(),
        "seed": seed,
        "photographs": {
            name: [f"{one.name} {one.sha256}" for one in photographs]
            for name, photographs in sets.items()
        },
        "clean": clean,
        "attacked": {"rows": len(x), "photographs": len(np.unique(groups))},
        "attacks": entries,
        "seconds": round(time.monotonic() - start, 1),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    say(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
