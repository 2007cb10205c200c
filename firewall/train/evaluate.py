"""Evaluation of a bundle: every attack of a suite, judged by the guard that serves.

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
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from firewall.attack.norms import norm_named
from firewall.attack.served_guard import ServedGuard
from firewall.attack.suite import Entry, Setting, suite
from firewall.bundle.store import Bundle
from firewall.errors import ConfigError
from firewall.guard.calibration import Calibration
from firewall.guard.compiled import CompiledGuard
from firewall.guard.live import LiveGuard
from firewall.guard.policy import Policy
from firewall.guard.verdict import Verdict
from firewall.guard.wire_input import WireInput
from firewall.train.measure import auroc, wilson

#: Rows of a shard.
SHARD = 16
#: A share of rows by which one attack must beat another before a flag says so.
_NOTABLE = 0.05


@dataclass(frozen=True)
class Request:
    """What is to be evaluated.

    Attributes:
        suite: `static`, `black-box`, `adaptive` or `full`.
        norm: `linf` or `l2`.
        radius: in units of the image batch.
        seed: of the attacks.
        rate: false-positive rate at which the guard is judged.
        steps: of iterated attacks.
        queries: of black-box attacks, for each row.

    """

    suite: str
    norm: str
    radius: float
    seed: int = 0
    rate: float = 0.01
    steps: int = 50
    queries: int = 500

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ConfigError(f"--eps: {self.radius}; expected a positive radius")
        if self.norm not in ("linf", "l2"):
            raise ConfigError(f"--norm: {self.norm!r}; expected linf or l2")


def evaluate(
    bundle: Bundle,
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    request: Request,
    folder: Path,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Attack a bundle and write `evaluation.json`.

    Args:
        bundle: checked.
        x: [N, C, H, W] images in [0, 1].
        y: [N] labels.
        request: what to do.
        folder: for shards and the result.
        progress: told what goes on.

    Returns:
        What was written.

    Raises:
        ConfigError: labels do not fit, or the folder holds another evaluation.

    """
    _check(bundle, x, y)
    setting = _setting(bundle, request)
    entries = suite(request.suite, setting, steps=request.steps, queries=request.queries)
    shards = folder / "shards"
    _claim(folder, bundle, x, y, request)
    shards.mkdir(exist_ok=True)
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    clean = _sharded(
        shards, "clean", len(x), lambda rows: _judge(setting, images[rows], labels[rows]), progress
    )
    found: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for number, entry in enumerate(entries):
        found[entry.name] = _sharded(
            shards,
            f"{number:02d}",
            len(x),
            lambda rows, entry=entry: _attack(  # type: ignore[misc]
                setting, entry, images[rows], labels[rows], request
            ),
            lambda line, name=entry.name: progress(f"{name}: {line}"),  # type: ignore[misc]
        )
    result = summary(clean, entries, found, request)
    draft = folder / "evaluation.json.part"
    draft.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(draft, folder / "evaluation.json")
    return result


def summary(
    clean: dict[str, npt.NDArray[Any]],
    entries: list[Entry],
    found: dict[str, dict[str, npt.NDArray[Any]]],
    request: Request,
) -> dict[str, Any]:
    """The figures of an evaluation."""
    rows = len(clean["right"])
    served = clean["accepted"] & clean["right"]
    broken = np.zeros(rows, bool)
    attacks: list[dict[str, Any]] = []
    for entry in entries:
        one = found[entry.name]
        through = one["accepted"] & ~one["right"]
        broken |= through
        attacks.append(
            {
                "name": entry.name,
                "knowledge": entry.knowledge,
                "success_rate": float(through.mean()),
                "success_interval": wilson(float(through.mean()), rows),
                "fooled_bare_rate": float((~one["bare_right"]).mean()),
                "detected_rate": float((~one["accepted"]).mean()),
                "auroc": auroc(clean["score"], one["score"]),
                "tpr_at_1pct_fpr": float((one["p_value"] <= 0.01).mean()),
                "robust_accuracy": float((served & ~through).mean()),
                "queries": float(one["queries"].mean()) if one["queries"].any() else None,
                "seconds": float(one["seconds"].sum()),
            }
        )
    robust = served & ~broken
    return {
        "threat_model": {"norm": request.norm, "radius": request.radius, "suite": request.suite},
        "n": rows,
        "seed": request.seed,
        "policy": {"false_positive_rate": request.rate},
        "clean": {
            "accuracy": _share(clean["bare_right"]),
            "accepted_and_correct": _share(served),
            "false_positive_rate": _share(~clean["accepted"]),
        },
        "attacks": attacks,
        "worst_case": {
            "robust_accuracy": float(robust.mean()),
            "interval": wilson(float(robust.mean()), rows),
            "per_example": [bool(row) for row in robust],
        },
        "warnings": flags(attacks),
    }


def flags(attacks: list[dict[str, Any]]) -> list[str]:
    """What makes an evaluation untrustworthy, in words (Carlini et al. 2019, arXiv:1902.06705)."""
    raised: list[str] = []
    by_name = {one["name"]: one for one in attacks}
    iterated = [one for name, one in by_name.items() if name.startswith("PGD-")]
    strong = [one for name, one in by_name.items() if name.startswith("APGD")]
    if iterated and strong:
        weak = iterated[0]["fooled_bare_rate"]
        best = max(one["fooled_bare_rate"] for one in strong)
        if best > weak + _NOTABLE:
            raised.append(
                f"gradient masking: APGD fools the bare classifier on {best:.0%} of rows where "
                f"{iterated[0]['name']} fools it on {weak:.0%}"
            )
    black = [one for one in attacks if one["knowledge"] == "black-box"]
    white = [one for one in attacks if one["knowledge"] == "adaptive"]
    if black and white:
        blind = max(one["success_rate"] for one in black)
        seeing = max(one["success_rate"] for one in white)
        if blind > seeing + _NOTABLE:
            raised.append(
                f"black box beats white box: {blind:.0%} of rows against {seeing:.0%}; the "
                "adaptive attack is too weak"
            )
    if not white:
        raised.append(
            "no adaptive attack: the figures are about attackers who do not know the guard"
        )
    return raised


def _share(hits: npt.NDArray[np.bool_]) -> dict[str, Any]:
    return {"value": float(hits.mean()), "interval": wilson(float(hits.mean()), len(hits))}


def _setting(bundle: Bundle, request: Request) -> Setting:
    spec = bundle.manifest.input
    calibration = Calibration.from_json(bundle.files["calibration.json"])
    wire = WireInput(spec)
    live = LiveGuard(
        CompiledGuard(bundle.files),
        calibration,
        Policy(false_positive_rate=request.rate),
        model=bundle.manifest.name,
        log_outputs=bool(bundle.manifest.guard.of("ensemble")),
    )
    return Setting(
        guard=ServedGuard(bundle.files, spec, calibration),
        live=live,
        cascade=calibration.cascade(request.rate),
        to_wire=lambda x: np.ascontiguousarray(wire.back(x).numpy()),
        norm=norm_named(request.norm),
        radius=request.radius,
    )


def _attack(
    setting: Setting, entry: Entry, x: Tensor, y: Tensor, request: Request
) -> dict[str, list[Any]]:
    start = time.monotonic()
    forged = entry.run(x, y, request.seed)
    # Measured, not claimed: back into the ball and the range, then judged by the server's own code.
    delta = setting.norm.project(forged.x - x, setting.radius)
    verdicts = _judge(setting, (x + delta).clamp(0.0, 1.0), y)
    queries = forged.queries if forged.queries is not None else torch.zeros(len(x))
    seconds = (time.monotonic() - start) / len(x)
    return verdicts | {"queries": queries.tolist(), "seconds": [seconds] * len(x)}


def _judge(setting: Setting, x: Tensor, y: Tensor) -> dict[str, list[Any]]:
    wire = setting.to_wire(x)
    answer = setting.live.screen(wire, [setting.live.plan("")] * len(wire))
    bare = setting.live.compiled.cheap(wire).logits.argmax(axis=1)
    return {
        "accepted": [one.verdict is not Verdict.REJECT for one in answer.decisions],
        "right": (answer.outputs.argmax(axis=1) == y.numpy()).tolist(),
        "bare_right": (bare == y.numpy()).tolist(),
        "score": [1e9 if one.score is None else one.score for one in answer.decisions],
        "p_value": [0.0 if one.p_value is None else one.p_value for one in answer.decisions],
    }


def _sharded(
    folder: Path,
    name: str,
    rows: int,
    work: Callable[[slice], dict[str, list[Any]]],
    progress: Callable[[str], None],
) -> dict[str, npt.NDArray[Any]]:
    """A map over shards, each kept in a file as soon as it is done."""
    columns: dict[str, list[Any]] = {}
    for start in range(0, rows, SHARD):
        path = folder / f"{name}-{start:06d}.json"
        if path.exists():
            done = json.loads(path.read_text())
        else:
            done = work(slice(start, min(start + SHARD, rows)))
            draft = path.with_suffix(".part")
            draft.write_text(json.dumps(done))
            os.replace(draft, path)
            progress(f"{min(start + SHARD, rows)} of {rows} rows")
        for key, values in done.items():
            columns.setdefault(key, []).extend(values)
    return {key: np.array(values) for key, values in columns.items()}


def _check(bundle: Bundle, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> None:
    spec, classes = bundle.manifest.input, bundle.manifest.classifier.classes
    wanted = (spec.channels, spec.height, spec.width)
    if x.ndim != 4 or x.shape[1:] != wanted or not len(x):
        raise ConfigError(f"--data, x: shape {list(x.shape)}; expected [rows, {wanted}]")
    if not np.isfinite(x).all() or x.min() < 0 or x.max() > 1:
        raise ConfigError("--data, x: expected values in [0, 1]")
    if y.shape != (len(x),):
        raise ConfigError(f"--data, y: shape {list(y.shape)}; expected one label for {len(x)} rows")
    if y.min() < 0 or y.max() >= classes:
        raise ConfigError(f"--data, y: labels {y.min()} to {y.max()}; expected 0 to {classes - 1}")


def _claim(
    folder: Path, bundle: Bundle, x: npt.NDArray[Any], y: npt.NDArray[Any], request: Request
) -> None:
    """Mark a folder as this evaluation's, or find that it is."""
    data = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
    claim = json.dumps({"bundle": bundle.digest, "data": data, "request": vars(request)})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "request.json"
    if path.exists() and path.read_text() != claim:
        raise ConfigError(f"--out: {folder} holds another evaluation; choose another folder")
    path.write_text(claim)
