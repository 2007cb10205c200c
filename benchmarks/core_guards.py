"""The default guard on photographs that no part of it has seen: false positives and forgeries.

    python -m firewall.core.photographs --out PHOTOGRAPHS
    python -m benchmarks.core_guards --photographs PHOTOGRAPHS --work WORK

One row a photograph of the split `test`, as the service's preprocessing takes it. Oblivious
attackers forge the bare classifier (or another network, to transfer); what they made is sent as
PNG, JPEG 90 and JPEG 75. Counted are forgeries that still fool the bare classifier as they arrive;
refused is what the guard refuses at a promised 1 %. Forgeries are kept in WORK, so that an
interrupted run goes on. Writes `benchmarks/results/core-guards/result.json`; with `--witness`, of
the bundle with a second network at paranoia 3, `benchmarks/results/witness/result.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from benchmarks.environment import environment
from firewall.attack.apgd import AutoPGD, TargetedAutoPGD
from firewall.attack.gradient import GradientAttack, Model, fgsm, pgd
from firewall.attack.oracle import Oracle, Replies
from firewall.attack.shaping import (
    diverse_inputs,
    one_for_all_channels,
    textured_only,
    translation_invariant,
)
from firewall.attack.square import Square
from firewall.bundle.signing import Signer
from firewall.bundle.store import open_bundle
from firewall.core.forgeries import to_pixels
from firewall.core.handling import HANDLINGS, Pixels, as_jpeg, resized, with_noise
from firewall.core.networks import fast
from firewall.core.photographs import photographs
from firewall.core.teach import to_batch
from firewall.decoding.decode import decode_image
from firewall.evaluation.measure import auroc, wilson
from firewall.guard.classifier import LogitsOnly
from firewall.screening.calibration import Calibration
from firewall.screening.compiled import CompiledGuard
from firewall.screening.preprocess import to_wire
from firewall.train import default_recipe as recipe
from firewall.train.default_bundle import build_default
from firewall.train.efficientnet import EfficientNetLite

RESULTS = Path(__file__).parent / "results"
RATE = 0.01
SEED = 20261202
_BATCH = 15


@dataclass(frozen=True)
class Attack:
    """An oblivious attack.

    Attributes:
        name: for tables.
        radius: in 255ths; 0 where it has none.
        run: network, images, labels and a seed to forgeries.
        network: that is forged, `lite0` to `lite2`.
        side: pixels at which it is made; resampled to 224 where it is another.

    """

    name: str
    radius: int
    run: Callable[[Model, Tensor, Tensor, int], Tensor]
    network: Literal[0, 1, 2] = 0
    side: int = 224

    @property
    def key(self) -> str:
        """Name of the file that keeps it."""
        words = f"{self.name}-{self.radius}-lite{self.network}-{self.side}".lower()
        return "".join(one if one.isalnum() else "-" for one in words)


def _momentum(radius: int, **options: Any) -> Callable[[Model, Tensor, Tensor, int], Tensor]:
    attack = GradientAttack(radius / 255, steps=10, step=radius / 255 / 8, momentum=1.0, **options)
    return lambda model, x, label, seed: attack(model, x, label, seed=seed)


def _square(model: Model, x: Tensor, label: Tensor, seed: int) -> Tensor:
    def answer(at: Tensor) -> Replies:
        with torch.no_grad():
            return Replies.of(model(at))

    oracle = Oracle(answer, len(x), 500)
    return Square(8 / 255)(oracle, x, label, seed=seed)


def _carlini_wagner(model: Model, x: Tensor, label: Tensor, seed: int) -> Tensor:
    import foolbox

    fmodel = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")  # type: ignore[arg-type]
    attack = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=3, steps=30, stepsize=0.01, initial_const=1.0, confidence=0.5
    )
    [found], _, _ = attack(fmodel, x, label, epsilons=[None])
    return torch.as_tensor(found)


def _patch(side: int) -> Callable[[Model, Tensor, Tensor, int], Tensor]:
    def run(model: Model, x: Tensor, label: Tensor, seed: int) -> Tensor:
        draws = np.random.default_rng(seed)
        mask = torch.zeros(len(x), 1, *x.shape[2:])
        for row in range(len(x)):
            top, left = (int(draws.integers(0, size - side + 1)) for size in x.shape[2:])
            mask[row, :, top : top + side, left : left + side] = 1.0
        attack = GradientAttack(
            1.0, steps=25, step=0.06, momentum=0.9, shape=lambda g, clean: mask * g.sign()
        )
        return attack(model, (1 - mask) * x + mask * 0.5, label, seed=seed)

    return run


def _linf(attack: Any) -> Callable[[Model, Tensor, Tensor, int], Tensor]:
    return lambda model, x, label, seed: attack(model, x, label, seed=seed)


ATTACKS = (
    *(Attack("FGSM", r, _linf(fgsm(r / 255))) for r in (2, 4)),
    *(Attack("PGD-10", r, _linf(pgd(r / 255, 10))) for r in (2, 4, 8)),
    *(Attack("APGD-CE", r, _linf(AutoPGD(r / 255, 20, stops=False))) for r in (2, 4, 8)),
    *(Attack("APGD-T", r, _linf(TargetedAutoPGD(r / 255, 20, stops=False))) for r in (2, 4, 8)),
    # Of a photograph that the random start is enough for, this is plain noise.
    Attack("APGD-CE, stopped once it fools", 4, _linf(AutoPGD(4 / 255, 20))),
    Attack("one perturbation for all channels", 4, _momentum(4, shape=one_for_all_channels)),
    Attack(
        "14 steps, textured places, no colour", 4,
        _linf(GradientAttack(4 / 255, 14, 0.7 / 255, momentum=1.0, shape=textured_only)),
    ),
    *(
        Attack(f"{name} from Lite{network}", 8, _momentum(8, **options), network)
        for network in (1, 2)
        for name, options in (
            ("MI", {}),
            ("DI", {"through": diverse_inputs}),
            ("TI", {"through": diverse_inputs, "shape": translation_invariant}),
        )
    ),
    Attack("PGD-10 of Lite2", 4, _linf(pgd(4 / 255, 10)), 2),
    Attack("PGD-10 of Lite2 at 260", 4, _linf(pgd(4 / 255, 10)), 2, 260),
    Attack("Square, 500 queries", 8, _square),
    Attack("patch of 40 pixels", 0, _patch(40)),
    Attack("patch of 60 pixels", 0, _patch(60)),
    Attack("CW-L2", 0, _carlini_wagner),
)  # fmt: skip
#: How forgeries are sent.
SENT: Mapping[str, Callable[[Pixels], Pixels]] = {
    "PNG": lambda pixels: pixels,
    "JPEG 90": lambda pixels: as_jpeg(pixels, 90),
    "JPEG 75": lambda pixels: as_jpeg(pixels, 75),
}


def chosen(only: str) -> list[Attack]:
    """Attacks whose names begin with one of some words, by comma; all where there are none."""
    return [one for one in ATTACKS if one.name.startswith(tuple(only.split(",")))]


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


def read(folder: Path, side: int) -> Pixels:
    """[N, side, side, 3]: each photograph of the test split, as the service takes it."""
    spec = recipe.INPUT.model_copy(update={"height": side, "width": side})
    fit = recipe.PREPROCESSING.model_copy(update={"resize": side + 32})
    return np.stack(
        [decode_image(path.read_bytes(), spec, fit) for path in photographs(folder, "test")]
    )


def arriving(folder: Path, side: int) -> Pixels:
    """[N, 224, 224, 3]: photographs of another side, resampled to what is sent."""
    pixels = read(folder, side)
    if side == recipe.SIDE:
        return pixels
    size = (recipe.SIDE, recipe.SIDE)
    return np.stack([resized(one, *size, Image.Resampling.BILINEAR) for one in pixels])


def forge(attack: Attack, folder: Path, work: Path) -> None:
    """Make the forgeries of one attack, [N, 224, 224, 3], unless they lie there."""
    path = work / f"{attack.key}.npz"
    if path.exists():
        return
    start = time.monotonic()
    model = LogitsOnly(fast(EfficientNetLite(attack.network)))
    x = to_batch(read(folder, attack.side))
    parts = []
    for number, part in enumerate(torch.split(x, _BATCH)):
        with torch.no_grad():
            label = model(part).argmax(dim=1)
        parts.append(to_pixels(attack.run(model, part, label, SEED + number)))
    forged = np.concatenate(parts)
    if attack.side != recipe.SIDE:
        size = (recipe.SIDE, recipe.SIDE)
        forged = np.stack([resized(one, *size, Image.Resampling.BILINEAR) for one in forged])
    work.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        np.savez(file, forged=forged, seconds=time.monotonic() - start)
    partial.rename(path)
    say(f"{attack.name} {attack.radius}: {time.monotonic() - start:.0f} s")


@dataclass(frozen=True)
class Seen:
    """What the guard and the classifiers made of N rows."""

    classes: npt.NDArray[np.int64]
    statistics: npt.NDArray[np.float64]
    p_values: npt.NDArray[np.float64]
    escalated: npt.NDArray[np.bool_]


class Guard:
    """The default guard, by its graphs."""

    def __init__(self, files: Mapping[str, bytes], paranoia: int) -> None:
        self.compiled = CompiledGuard(files)
        self.calibration = Calibration.from_json(files["calibration.json"])
        self.cascade = self.calibration.cascade(RATE, self.calibration.up_to(paranoia))

    def look(self, pixels: Pixels) -> Seen:
        """Compute both tiers for every row, and decide as the service does."""
        wire = to_wire(pixels, recipe.INPUT)
        classes = np.concatenate(
            [
                self.compiled.cheap(wire[n : n + 16]).logits.argmax(axis=1)
                for n in range(0, len(wire), 16)
            ]
        )
        statistics = self.compiled.both(wire)[1].astype(np.float64)
        cascade = self.cascade
        doubt = cascade.doubt(statistics[:, : self.calibration.cheap])
        escalated = cascade.escalates(doubt)
        scores = cascade.scores(doubt, escalated, statistics[escalated])
        return Seen(classes, statistics, cascade.p_values(scores, classes), escalated)


def share(rows: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """A share of photographs, with its interval."""
    if not len(rows):
        return {"share": None, "interval": None, "of": 0}
    rate = float(rows.mean())
    return {"share": rate, "interval": wilson(rate, len(rows)), "of": len(rows)}


def measure(guard: Guard, folder: Path, work: Path, only: str) -> dict[str, Any]:
    """Figures of clean, handled and forged photographs."""
    clean = read(folder, recipe.SIDE)
    rng = np.random.default_rng(SEED)
    seen = guard.look(clean)
    ways: dict[str, Callable[[Pixels], Pixels]] = {
        name: (lambda one, way=way: way(one, rng)) for name, way in HANDLINGS.items()
    }
    ways |= {
        f"noise, sigma {sigma}/255": (lambda one, sigma=sigma: with_noise(one, sigma, rng))
        for sigma in (1, 2, 3)
    }
    benign = {}
    for name, way in ways.items():
        found = seen if name == "as it is" else guard.look(np.stack([way(one) for one in clean]))
        benign[name] = {
            "refused": share(found.p_values <= RATE),
            "escalated": share(found.escalated),
        }
        say(f"{name}: {json.dumps(benign[name])}")
    label = seen.classes
    lite2 = EfficientNetLite(2)

    def theirs(pixels: Pixels) -> npt.NDArray[np.int64]:
        with torch.no_grad():
            parts = [lite2(part).logits.argmax(dim=1) for part in torch.split(to_batch(pixels), 16)]
        return torch.cat(parts).numpy()

    # Of the very crops that were forged, as they arrive.
    label_of_lite2 = {side: theirs(arriving(folder, side)) for side in (recipe.SIDE, 260)}
    attacks = []
    names = guard.calibration.detectors
    for attack in chosen(only):
        path = work / f"{attack.key}.npz"
        if not path.exists():
            say(f"{attack.name}: no forgeries in {work}")
            continue
        with np.load(path, allow_pickle=False) as kept:
            forged = kept["forged"]
        own = attack.name.startswith("PGD-10 of Lite2")
        for way, sends in SENT.items():
            pixels = np.stack([sends(one) for one in forged])
            found = guard.look(pixels)
            fools = found.classes != label
            if own:
                # The victim of these is another classifier, which no stage may have seen.
                fools = theirs(pixels) != label_of_lite2[attack.side]
            entry: dict[str, Any] = {
                "attack": attack.name,
                "radius_255": attack.radius,
                "sent": way,
                "fools": share(fools),
                "refused": share((found.p_values <= RATE)[fools]),
                "escalated": share(found.escalated[fools]),
            }
            if fools.any():
                entry["auroc"] = {
                    name: auroc(seen.statistics[:, n], found.statistics[fools, n])
                    for n, name in enumerate(names)
                }
            attacks.append(entry)
            say(json.dumps({**entry, "auroc": None}))
    return {"photographs": len(clean), "benign": benign, "attacks": attacks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--forge-only", action="store_true")
    parser.add_argument("--backwards", action="store_true", help="for a second process")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only", default="", help="attacks whose names begin so, by comma")
    parser.add_argument("--witness", action="store_true", help="with a second network")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    measured_in = environment(("torch", "onnxruntime-gpu", "numpy", "pillow", "foolbox"))
    for attack in chosen(arguments.only)[:: -1 if arguments.backwards else 1]:
        forge(attack, arguments.photographs, arguments.work)
    if arguments.forge_only:
        return
    signer = Signer.generate()
    witness = arguments.witness
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "bundle"
        build_default(place, signer, say, witness=witness)
        guard = Guard(open_bundle(place, {signer.public}).files, 3 if witness else 2)
    result = {
        "environment": measured_in,
        "recipe": recipe.digest(witness),
        "seed": SEED,
        "rate": RATE,
        "sent": list(SENT),
        "weights": vars(guard.calibration.weights),
        **measure(guard, arguments.photographs, arguments.work, arguments.only),
    }
    out = RESULTS / ("witness" if witness else "core-guards") / "result.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    say(f"wrote {out}")


if __name__ == "__main__":
    main()
