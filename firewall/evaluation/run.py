"""Evaluation: every attack of a suite, judged by the guard that serves.

*Robust accuracy of a firewall*: the share of points whose clean input is accepted and right, and
for which no attack in the budget gives an input that is accepted and wrong. An attack is judged by
what it made, never by what it says.

Work is done in shards, each written when it is done; the same command goes on where it stopped and
ends with the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from firewall.attack.suite import Entry
from firewall.attack.victim import GuardParts
from firewall.errors import ConfigError
from firewall.evaluation import figures
from firewall.evaluation.flags import flags
from firewall.evaluation.request import Request, check_data, shard_rows
from firewall.evaluation.shards import Progress, Shards, Table
from firewall.evaluation.target import Target
from firewall.evaluation.worker import EvaluationWorker, Make

#: Rows on which flags and curves are measured.
PROBE_ROWS = 64
PROBES = ("gradient", "noise", "large", "steps", "restarts", "loss")
#: Raised first of all.
_BROKEN = (
    "CERTIFICATE BROKEN: an attack did what is proven not to be possible; do not use this bundle, "
    "and report it"
)
#: Radii of the curve, in parts of the radius asked for; it ends where nothing stands.
CURVE = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)


@dataclass(frozen=True)
class Evaluated:
    """An evaluation: its figures, and the rows from which they and the report are made."""

    result: dict[str, Any]
    target: Target
    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    guard: GuardParts | None
    entries: list[Entry]
    clean: Table
    found: dict[str, Table]
    probes: dict[str, Table]


def evaluate(
    target: Target,
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    request: Request,
    folder: Path,
    *,
    surrogates: tuple[tuple[str, nn.Module], ...] = (),
    provenance: dict[str, Any] | None = None,
    jobs: int = 1,
    progress: Progress = lambda line: None,
) -> Evaluated:
    """Attack a target and write `evaluation.json`.

    Args:
        target: a checked bundle, or a bare classifier.
        x: [N, C, H, W] images in [0, 1].
        y: [N] labels.
        request: what to do.
        folder: for shards and the result.
        surrogates: networks to forge on, by name; sent once.
        provenance: command, machine, versions and date, to be written beside the figures.
        jobs: processes.
        progress: told what goes on.

    Returns:
        What was written, and what a report needs.

    Raises:
        ConfigError: labels do not fit, or the folder holds another evaluation.

    """
    if jobs < 1:
        raise ConfigError(f"--jobs: {jobs}; expected at least 1")
    check_data(x, y, target.shape, target.classes)
    make = Make(target, request, x, y, surrogates)
    worker = make()
    _claim(folder, request.claim(target.digest, x, y, _digest(surrogates)))
    shards = Shards(folder / "shards", make, len(x), shard_rows(x), jobs, progress)
    tasks = [
        ("clean", "clean"),
        *((f"attack-{number:02d}", entry.name) for number, entry in enumerate(worker.entries)),
    ]
    rows = shards.run(tasks)
    clean = rows["clean"]
    found = {
        entry.name: rows[f"attack-{number:02d}"] for number, entry in enumerate(worker.entries)
    }
    probes: dict[str, Table] = {}
    curve: list[dict[str, Any]] = []
    # What is checked are gradients.
    if request.checks and worker.setting.victim.differentiable:
        probed = shards.run([(f"probe-{name}", f"check: {name}") for name in PROBES], PROBE_ROWS)
        probes = {name: probed[f"probe-{name}"] for name in PROBES}
        curve = _curve(shards, worker, request, clean)
    result = _result(target, request, worker, y, clean, found, probes, curve, provenance)
    write(folder / "evaluation.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    guard = worker.setting.victim.guard
    return Evaluated(result, target, x, y, guard, worker.entries, clean, found, probes)


def _curve(
    shards: Shards, worker: EvaluationWorker, request: Request, clean: Table
) -> list[dict[str, Any]]:
    """Robust accuracy against the radius, to where nothing stands."""
    rows = min(PROBE_ROWS, len(clean["right"]))
    served = (clean["accepted"] & clean["right"])[:rows]
    curve = [
        {
            "radius": 0.0,
            "robust_accuracy": float(served.mean()),
            "bare_robust_accuracy": float(clean["bare_right"][:rows].mean()),
        }
    ]
    stands = served
    bare = clean["bare_right"][:rows]
    for part in CURVE:
        radius = part * request.radius
        key = f"curve-{radius:.8g}"
        at = shards.run([(key, f"curve at {radius:.4g}")], rows)[key]
        # Whoever may go further may stay nearer as well.
        stands, bare = stands & at["stands"], bare & at["bare"]
        curve.append(
            {
                "radius": radius,
                "robust_accuracy": float(stands.mean()),
                "bare_robust_accuracy": float(bare.mean()),
            }
        )
        if not stands.any() and not bare.any():
            break
    return curve


def _result(
    target: Target,
    request: Request,
    worker: EvaluationWorker,
    y: npt.NDArray[np.int64],
    clean: Table,
    found: dict[str, Table],
    probes: dict[str, Table],
    curve: list[dict[str, Any]],
    provenance: dict[str, Any] | None,
) -> dict[str, Any]:
    entries, guard = worker.entries, worker.setting.victim.guard
    attacks = [
        figures.attack_figures(clean, entry, found[entry.name], target.classes) for entry in entries
    ]
    clean_figures = figures.clean_figures(clean, y)
    guarded = guard is not None or not worker.setting.victim.differentiable
    right = clean["bare_right"]
    result: dict[str, Any] = {
        "schema": 1,
        "target": {
            "name": target.name,
            "digest": target.digest,
            "guarded": guarded,
            "note": target.note,
        },
        "threat_model": {"norm": request.norm, "radius": request.radius, "suite": request.suite},
        "effort": {
            "steps": request.steps,
            "queries": request.queries,
            "draws": worker.setting.draws,
        },
        "n": len(clean["right"]),
        "seed": request.seed,
        "policy": {
            "false_positive_rate": request.rate,
            "paranoia": 3 if guard and guard.calibration.guard_model else 2,
        },
        "warnings": flags(attacks, clean_figures, clean, found, probes, guarded=guarded),
        "clean": clean_figures,
        "attacks": attacks,
        "worst_case": figures.worst_case(clean, entries, found),
        "curve": {"rows": min(PROBE_ROWS, len(clean["right"])), "points": curve},
        "checks": _checks(probes, right),
        "confusion": figures.confusion(clean, found, target.classes),
        "ablation": figures.ablation(guard, clean, entries, found) if guard else [],
    }
    if worker.certifies:
        result["certified"] = figures.certificates(clean, entries, found, request.radius)
        proven = result["certified"]["paranoia_4"]
        if result["certified"]["violations"] or (
            proven["robust_accuracy"] != proven["accepted_and_correct"]
        ):
            result["warnings"].insert(0, _BROKEN)
    if provenance is not None:
        result["environment"] = provenance
    return result


def _checks(probes: dict[str, Table], right: npt.NDArray[np.bool_]) -> dict[str, Any] | None:
    """Figures of the checks; None where none ran."""
    if not probes:
        return None
    return {
        "rows": min(PROBE_ROWS, len(right)),
        "noise_fools": figures.among(probes["noise"]["fooled"], right),
        "large_radius_fools": figures.among(probes["large"]["fooled"], right),
        "four_times_the_steps_fools": figures.among(probes["steps"]["fooled"], right),
        "five_restarts_fools": figures.among(probes["restarts"]["fooled"], right),
        "vanished_gradients": float(probes["gradient"]["vanished"].mean()),
        "random": bool(probes["gradient"]["random"].any()),
    }


def _claim(folder: Path, claim: str) -> None:
    """Mark a folder as this evaluation's, or find that it is."""
    path = folder / "request.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.read_text(encoding="utf-8") != claim:
            raise ConfigError(f"--out: {folder} holds another evaluation; choose another folder")
        write(path, claim)
    except OSError as error:
        raise ConfigError(f"--out: {folder} cannot be written: {error.strerror}") from error


def write(path: Path, text: str) -> None:
    """All of a file, or nothing of it."""
    draft = path.with_suffix(path.suffix + ".part")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def _digest(surrogates: tuple[tuple[str, nn.Module], ...]) -> str:
    total = hashlib.sha256()
    for name, network in surrogates:
        total.update(name.encode())
        for key, value in network.state_dict().items():
            total.update(key.encode() + value.numpy().tobytes())
    return total.hexdigest()
