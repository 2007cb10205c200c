"""Make the shipped guards from photographs, from nothing: weights, combination, calibration.

    python -m firewall.core.photographs --out PHOTOGRAPHS
    python -m firewall.core.build --photographs PHOTOGRAPHS --work WORK

Forges photographs of the split `train`, teaches the detectors of pixels and of EfficientNet-Lite0's
features on four fifths of them, fits the combination on the others, and calibrates on the split
`calibration`. The split `test` is not looked at. About three hours on two cores; interrupted, it
goes on where it was. It takes the packages of `firewall.core.networks`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from firewall.core.forgeries import Pairs, crop, forge_pairs, read_pairs
from firewall.core.handling import HANDLINGS, Pixels, sent
from firewall.core.networks import fast, networks
from firewall.core.photographs import photographs
from firewall.core.shipped import Shipped, check_statistics, digests
from firewall.core.teach import (
    batches,
    detection_by_kind,
    save_state,
    save_weights,
    teach_pixels,
    teaching_features,
    to_batch,
)
from firewall.errors import FirewallError
from firewall.evaluation.provenance import provenance
from firewall.guard.assemble import assemble
from firewall.guard.compile import compile_embedded
from firewall.screening.calibration import Calibration, least_sample
from firewall.screening.compiled import CompiledGuard
from firewall.screening.preprocess import to_wire
from firewall.stages import Evidence
from firewall.stages.registry import Registry
from firewall.train import default_recipe as recipe
from firewall.train.combine import with_learnt_weights
from firewall.train.default_bundle import members
from firewall.train.efficientnet import EfficientNetLite

WEIGHTS = Path(__file__).parent / "weights"
SEED = 20261201
#: Every fifth photograph of `train` is kept for the combination.
_EVERY = 5
#: Photographs that a build takes, at least: calibration must promise one per cent.
_LEAST = {"train": 50, "calibration": least_sample(0.01)}


class Build:
    """One run, in a folder of work."""

    def __init__(self, folder: Path, work: Path, *, seed: int = SEED) -> None:
        self._train = photographs(folder, "train", at_least=_LEAST["train"])
        self._calibration = photographs(folder, "calibration", at_least=_LEAST["calibration"])
        self._work, self._seed = work, seed
        self._start = time.monotonic()
        self._registry = Registry.discover()

    def say(self, line: str) -> None:
        """Print a line of progress."""
        print(f"{time.monotonic() - self._start:8.0f} s  {line}", file=sys.stderr, flush=True)

    def forge(self, count: int, part: slice = slice(None)) -> None:
        """Make the forgeries; a slice of their batches where several processes share the work."""
        folder = self._work / "forgeries"
        forge_pairs(self._train, networks(), count, self._seed, folder, self.say, part)

    def pairs(self, without: Sequence[str] = ()) -> tuple[Pairs, Pairs]:
        """Pairs to teach from, and to combine by; none of some classifiers in the first."""
        every = read_pairs(self._work / "forgeries")
        apart = every.photograph % _EVERY == 0
        return (
            _take(every, ~apart & ~np.isin(every.network, list(without))),
            _take(every, apart),
        )

    def pixels(self, out: Path, epochs: int, whole: int, without: Sequence[str] = ()) -> None:
        """Teach the detector of pixels, and write its weights."""
        from firewall_plugins.detectors.core_pixels import VERSION, CorePixels

        teach, combine = self.pairs(without)
        self.say(f"pixels: {len(teach.clean)} pairs")
        detector = CorePixels(CorePixels.Config(weights="untrained"))
        state = self._work / f"{'-without-'.join([out.stem, *without])}.pt"
        teach_pixels(
            detector, teach, epochs=epochs, whole=whole, seed=self._seed, state=state,
            progress=self.say,
        )  # fmt: skip

        def score(pixels: Pixels) -> npt.NDArray[np.float64]:
            with torch.no_grad():
                parts = [detector(Evidence(raw=to_batch(part))) for part in batches(pixels)]
            return torch.cat(parts).double().numpy()

        figures = detection_by_kind(score, combine, self._seed)
        self.say(json.dumps(figures, allow_nan=False))
        about = {"pairs": len(teach.clean), "epochs": [epochs, whole], "seed": self._seed}
        save_weights(detector, out, VERSION, about | {"without": list(without)})

    def features(self, out: Path) -> None:
        """Teach the detector of features, and write its weights."""
        from firewall_plugins.detectors.core_features import VERSION, CoreFeatures

        teach, _ = self.pairs()
        classifier = fast(EfficientNetLite(depths=True))
        config = CoreFeatures.Config(taps=recipe.TAPS)
        detector = CoreFeatures(config)
        kept = self._work / "features.pt"
        made_of = teach.digest()
        saved = torch.load(kept, weights_only=True) if kept.exists() else {}
        if saved.get("made_of") == made_of:
            seen, target = saved["seen"], saved["target"]
        else:
            seen, target = teaching_features(
                detector.features_of, classifier, teach, seed=self._seed, progress=self.say
            )
            save_state({"made_of": made_of, "seen": seen, "target": target}, kept)
        report = detector.learn_features(seen, target, torch.Generator().manual_seed(self._seed))
        self.say(f"features: {report}")
        save_weights(detector, out, VERSION, {"rows": report.rows, "seed": self._seed})

    def calibrate(self, out: Path, witness: bool) -> None:
        """Fit the combination and calibrate the default guard, and write what ships of it."""
        classifier = EfficientNetLite(depths=True)
        guard = assemble(recipe.guard(witness), self._registry, classifier, members(witness))
        self.say("compiling to ONNX")
        graphs = compile_embedded(guard, recipe.INPUT)
        compiled = CompiledGuard(graphs)
        _, combine = self.pairs()
        rng = np.random.default_rng(self._seed + 1)
        own = self._train[::_EVERY]
        self.say(f"combination: {len(combine.clean)} forgeries of {len(own)} photographs")
        clean, _ = handled_photographs(own, rng)
        forged = np.stack([sent(one, rng) for one in combine.forged])
        # Of all networks, those that are forgeries to this one as they arrive.
        fools = _classes(compiled, forged) != _classes(compiled, combine.clean)
        forged, network = forged[fools], combine.network[fools]
        part_a = self._statistics(compiled, clean, "combination-clean")
        attacked = self._statistics(compiled, forged, "combination-forged")
        self.say(f"calibrating on {len(self._calibration)} photographs")
        pixels, groups = handled_photographs(self._calibration, rng)
        part_b = self._statistics(compiled, pixels, "calibration")
        cheap = guard.tier("cheap")
        before = Calibration(
            detectors=(*cheap, *guard.tier("expensive")), cheap=len(cheap), part_a=part_a,
            part_b=part_b, escalation=recipe.ESCALATION, photographs=groups,
            guard_model=(recipe.WITNESS.name,) if witness else (),
        )  # fmt: skip
        calibration = with_learnt_weights(before, part_a, attacked)
        two = [calibration.detectors.index(name) for name in ("pixels", "squeezing")]
        elsewhere = with_learnt_weights(
            replace(
                before, detectors=tuple(calibration.detectors[n] for n in two), cheap=1,
                part_a=part_a[:, two], part_b=part_b[:, two], guard_model=(),
            ),
            part_a[:, two],
            attacked[network == recipe.NAME][:, two],
        ).weights  # fmt: skip
        if elsewhere is None:
            raise RuntimeError("a learnt combination has weights")
        made: dict[str, Any] = {
            "provenance": provenance(),
            "seed": self._seed,
            "forgeries": {"combination": len(forged)},
            "photographs": {"train": len(self._train), "calibration": len(self._calibration)},
            "handlings": list(HANDLINGS),
        }
        shipped = Shipped(calibration, digests(graphs), check_statistics(compiled), elsewhere, made)
        out.write_text(shipped.to_json(), encoding="utf-8")
        self.say(f"weights: {calibration.weights}")

    def _statistics(
        self, compiled: CompiledGuard, pixels: Pixels, name: str
    ) -> npt.NDArray[np.float64]:
        self.say(f"statistics of {len(pixels)} images: {name}")
        found = compiled.both(to_wire(pixels, recipe.INPUT))[1].astype(np.float64)
        return np.round(found, 6)


def _classes(compiled: CompiledGuard, pixels: Pixels) -> npt.NDArray[np.intp]:
    """[N]: what the classifier alone says."""
    parts = [compiled.cheap(to_wire(part, recipe.INPUT)).logits for part in batches(pixels)]
    found: npt.NDArray[np.intp] = np.concatenate(parts).argmax(axis=1)
    return found


def handled_photographs(
    paths: Sequence[Path], rng: np.random.Generator
) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Each photograph handled in every way once, each of another crop; and its number, [N]."""
    rows: list[Pixels] = []
    for path in paths:
        rows += [way(crop(path, recipe.SIDE, rng), rng) for way in HANDLINGS.values()]
    return np.stack(rows), np.repeat(np.arange(len(paths)), len(HANDLINGS))


def _take(pairs: Pairs, rows: npt.NDArray[np.bool_]) -> Pairs:
    return Pairs(**{one.name: getattr(pairs, one.name)[rows] for one in fields(pairs)})


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m firewall.core.build", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--photographs", type=Path, required=True, help="folder to read")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is done so far")
    parser.add_argument("--forgeries", type=int, default=5760)
    parser.add_argument("--epochs", type=int, default=22, help="of the pixel detector, on crops")
    parser.add_argument("--whole", type=int, default=3, help="epochs on whole images after those")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 is one per core")
    parser.add_argument(
        "--steps", default="forge,pixels,features,calibrate,witness", help="which, by comma"
    )
    parser.add_argument(
        "--without", default="", help="classifiers that the pixel detector is not taught by"
    )
    parser.add_argument("--out", type=Path, help="folder for the weights of such a detector")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    without = [name for name in arguments.without.split(",") if name]
    steps = arguments.steps.split(",")
    if bool(without) != (arguments.out is not None):
        parser.error(
            "--without and --out belong together: a detector that has not learnt from all "
            "classifiers is measured, and does not ship"
        )
    # Stages are calibrated with the weights of the package: only the detector apart goes elsewhere.
    out: Path = arguments.out or WEIGHTS
    if without:
        steps = [name for name in steps if name in ("forge", "pixels")]
    try:
        build = Build(arguments.photographs, arguments.work)
        out.mkdir(parents=True, exist_ok=True)
        if "forge" in steps:
            build.forge(arguments.forgeries)
        if "pixels" in steps:
            place = out / "core-pixels.safetensors"
            build.pixels(place, arguments.epochs, arguments.whole, without)
        if "features" in steps:
            build.features(out / f"core-features-{recipe.NAME}.safetensors")
        if "calibrate" in steps:
            build.calibrate(out / recipe.calibration_file(False), witness=False)
        if "witness" in steps:
            build.calibrate(out / recipe.calibration_file(True), witness=True)
    except FirewallError as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
