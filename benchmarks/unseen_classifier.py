"""The shipped pixel detector alone, on forgeries of a classifier that it has not learnt from.

    python -m firewall.core.build --photographs PHOTOGRAPHS --work WORK --steps forge,pixels \
        --without efficientnet-lite2 --out WORK/unseen
    python -m benchmarks.core_guards --photographs PHOTOGRAPHS --work WORK/test --forge-only
    python -m benchmarks.unseen_classifier --photographs PHOTOGRAPHS --work WORK/test \
        --weights WORK/unseen/core-pixels.safetensors

The detector is taught as the shipped one, without Lite2, and calibrated on the split `calibration`
by photograph. Counted are forgeries of Lite2 that fool Lite2 as they arrive. Writes
`benchmarks/results/unseen-classifier/result.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from firewall_plugins.detectors.core_pixels import CorePixels
from safetensors.torch import load_file

from benchmarks.core_guards import ATTACKS, RATE, SEED, SENT, arriving, read, say, share
from benchmarks.environment import environment
from firewall.core.build import handled_photographs
from firewall.core.handling import HANDLINGS, Pixels
from firewall.core.photographs import photographs
from firewall.core.teach import batches, to_batch
from firewall.screening.calibration import Calibration, Cascade
from firewall.stages import Evidence
from firewall.train import default_recipe as recipe
from firewall.train.efficientnet import EfficientNetLite

OUT = Path(__file__).parent / "results" / "unseen-classifier" / "result.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="with the forgeries of Lite2")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measured_in = environment(("torch", "numpy", "pillow"))
    detector = CorePixels(CorePixels.Config(weights="untrained"))
    detector.load_state_dict(load_file(arguments.weights), strict=False)

    def score(pixels: Pixels) -> np.ndarray:
        with torch.no_grad():
            parts = [detector(Evidence(raw=to_batch(part))) for part in batches(pixels)]
        return torch.cat(parts).double().numpy()[:, None]

    rng = np.random.default_rng(SEED)
    pixels, groups = handled_photographs(photographs(arguments.photographs, "calibration"), rng)
    rows = score(pixels)
    cascade = Calibration(
        detectors=("pixels",), cheap=1, part_a=rows, part_b=rows, escalation=1.0,
        photographs=groups,
    ).cascade(RATE)  # fmt: skip
    clean = read(arguments.photographs, recipe.SIDE)
    result: dict[str, Any] = {
        "environment": measured_in,
        "photographs": len(clean),
        "rate": RATE,
        "benign": {
            name: share(refused(cascade, score(np.stack([way(one, rng) for one in clean]))))
            for name, way in HANDLINGS.items()
        },
        "attacks": [],
    }
    lite2 = EfficientNetLite(2)

    def classes(pixels: Pixels) -> np.ndarray:
        with torch.no_grad():
            return torch.cat(
                [lite2(to_batch(part)).logits.argmax(dim=1) for part in batches(pixels)]
            ).numpy()

    for attack in (one for one in ATTACKS if one.name.startswith("PGD-10 of Lite2")):
        with np.load(arguments.work / f"{attack.key}.npz", allow_pickle=False) as kept:
            forged = kept["forged"]
        label = classes(arriving(arguments.photographs, attack.side))
        for way, sends in SENT.items():
            sent = np.stack([sends(one) for one in forged])
            fools = classes(sent) != label
            entry = {
                "attack": attack.name,
                "radius_255": attack.radius,
                "sent": way,
                "fools": share(fools),
                "refused": share(refused(cascade, score(sent[fools]))),
            }
            result["attacks"].append(entry)
            say(json.dumps(entry))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    say(f"wrote {arguments.out}")


def refused(cascade: Cascade, rows: np.ndarray) -> np.ndarray:
    """[N]: which rows are refused."""
    doubt = cascade.doubt(rows)
    escalated = cascade.escalates(doubt)
    scores = cascade.scores(doubt, escalated, rows[escalated])
    p_values = cascade.p_values(scores, np.zeros(len(rows), np.int64))
    return np.asarray(p_values <= cascade.rate)


if __name__ == "__main__":
    main()
