"""From an assembled guard to a signed bundle: fit, compile, parity, calibrate, self-test, sign."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from firewall import __version__
from firewall.bundle.manifest import ClassifierSpec, Manifest, Provenance, ThreatModel
from firewall.bundle.signing import Signer
from firewall.bundle.store import write_bundle
from firewall.guard.assemble import assemble
from firewall.guard.calibration import Calibration
from firewall.guard.classifier import Classifier
from firewall.guard.compile import compile_embedded
from firewall.guard.compiled import CompiledGuard
from firewall.guard.graph import Guard
from firewall.guard.live import LiveGuard
from firewall.guard.parity import check_parity
from firewall.guard.policy import Policy
from firewall.guard.preprocess import to_wire
from firewall.guard.selftest import SelfTest
from firewall.guard.spec import GuardSpec, InputSpec, Preprocessing
from firewall.guard.wire_input import WireInput
from firewall.stages import RAW, Adopter, Evidence, Fittable, Learner, Lesson, forger
from firewall.stages.registry import Registry
from firewall.train.card import render
from firewall.train.measure import false_positives
from firewall.train.smoothing_table import SmoothingSpec, tabulate

#: Told what begins.
Progress = Callable[[str], None]
Pixels = npt.NDArray[np.uint8]
#: Of forgeries that stages learn from, where the threat model names no L-infinity radius.
_LESSON_RADIUS = 8 / 255
_LESSON_STEPS = 7


@dataclass(frozen=True)
class Data:
    """Clean images by part, each [N, H, W, C] uint8, from disjoint sources.

    Attributes:
        fit: by which stages are fitted.
        part_a: reference of each statistic.
        part_b: on which the combination is calibrated.
        held_out: on which the false-positive rate is measured.
        held_out_groups: [N] source of each held-out image.
        names: by part, "name sha256" of the files.

    """

    fit: Pixels
    part_a: Pixels
    part_b: Pixels
    held_out: Pixels
    held_out_groups: npt.NDArray[np.intp]
    names: Mapping[str, tuple[str, ...]]
    #: [N] classes of `fit`; what the classifier says of them when left out.
    fit_labels: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Identity:
    """How the bundle is called and what it says about itself."""

    name: str
    version: str
    architecture: str
    recipe: str
    seed: int
    labels: tuple[str, ...]
    threat_model: ThreatModel
    #: When it was made, ISO 8601 in UTC; now when empty.
    created: str = ""


def build(
    target: Path,
    *,
    identity: Identity,
    classifier: Classifier,
    guard_spec: GuardSpec,
    input_spec: InputSpec,
    preprocessing: Preprocessing,
    escalation: float,
    data: Data,
    signer: Signer,
    registry: Registry,
    reference: dict[str, Any] | None = None,
    members: Mapping[str, nn.Module] | None = None,
    smoothing: SmoothingSpec | None = None,
    progress: Progress = lambda step: None,
) -> str:
    """Make a bundle; returns its digest.

    Args:
        target: a directory that does not exist yet.
        identity: names.
        classifier: embedded.
        guard_spec: stages.
        input_spec: what clients send.
        preprocessing: of encoded images.
        escalation: share of clean rows for the expensive tier.
        data: clean images.
        signer: whose signature the bundle gets.
        registry: plugins.
        reference: evaluation of an earlier bundle of this recipe, for the model card.
        members: networks that stages may own, by name.
        smoothing: of certificates by randomised smoothing; None is none.
        progress: told each step.

    Raises:
        FirewallError: a step failed; nothing is left at `target`.

    """
    progress("assembling the guard")
    guard = assemble(guard_spec, registry, classifier, members)
    progress("fitting the stages")
    threat = identity.threat_model
    fitted = fit(
        guard,
        to_wire(data.fit, input_spec),
        input_spec,
        identity.seed,
        labels=data.fit_labels,
        radius=threat.radius if threat.norm == "linf" else _LESSON_RADIUS,
    )
    progress("compiling to ONNX")
    graphs = compile_embedded(guard, input_spec)
    compiled = CompiledGuard(graphs)
    progress("comparing ONNX with torch")
    check_parity(guard, compiled, input_spec)
    progress(f"calibrating on {len(data.part_a)} + {len(data.part_b)} images")
    calibration = Calibration(
        detectors=tuple(guard.tier("cheap") + guard.tier("expensive")),
        cheap=len(guard.tier("cheap")),
        part_a=compiled.both(to_wire(data.part_a, input_spec))[1].astype(np.float64),
        part_b=compiled.both(to_wire(data.part_b, input_spec))[1].astype(np.float64),
        escalation=escalation,
        guard_model=tuple(
            name for name, stage in guard.detectors.items() if isinstance(stage, Adopter)
        ),
    )
    progress(f"measuring false positives on {len(data.held_out)} held-out images")
    held_out = measure_rows(
        compiled, calibration, to_wire(data.held_out, input_spec), bool(guard_spec.of("ensemble"))
    )
    evaluation = {
        "held_out": false_positives(held_out.p_values, data.held_out_groups),
        "reference": reference,
    }
    manifest = Manifest(
        name=identity.name,
        version=identity.version,
        classifier=ClassifierSpec(
            kind="embedded",
            architecture=identity.architecture,
            classes=classifier.num_classes,
            taps=classifier.taps,
        ),
        input=input_spec,
        preprocessing=preprocessing,
        guard=guard_spec,
        threat_model=identity.threat_model,
        provenance=Provenance(
            created=identity.created or datetime.now(UTC).isoformat(timespec="seconds"),
            producer=f"robustness-firewall {__version__}",
            recipe=identity.recipe,
            seed=identity.seed,
            libraries={
                "python": platform.python_version(),
                "torch": torch.__version__,
                "onnx": version("onnx"),
                "numpy": np.__version__,
            },
            data=dict(data.names),
            fitted=fitted,
        ),
        files={},
    )
    progress("signing and writing the bundle")
    selftest = SelfTest.record(compiled, to_wire(data.held_out[:2], input_spec))
    SelfTest.from_npz(selftest.to_npz()).run(CompiledGuard(graphs))
    files = {
        **graphs,
        "calibration.json": calibration.to_json(),
        "labels.json": json.dumps(list(identity.labels)).encode(),
        "selftest.npz": selftest.to_npz(),
        "evaluation.json": json.dumps(evaluation, indent=1).encode(),
        "MODEL_CARD.md": render(manifest, calibration, evaluation).encode(),
    }
    if smoothing is not None:
        files["smoothing.json"] = tabulate(smoothing).to_json()
    return write_bundle(target, manifest, files, signer)


def fit(
    guard: Guard,
    wire: npt.NDArray[Any],
    spec: InputSpec,
    seed: int,
    *,
    labels: npt.NDArray[np.int64] | None = None,
    radius: float = _LESSON_RADIUS,
) -> dict[str, dict[str, float]]:
    """Teach and fit every stage that can be; figures by stage.

    Denoisers first: what they learn changes the views that detectors and ensembles are fitted on.

    Args:
        guard: its stages are changed in place.
        wire: clean rows.
        spec: of the wire.
        seed: of every draw.
        labels: [N] classes; what the classifier says when None.
        radius: L-infinity, of the forgeries that stages learn from.

    """
    rng = torch.Generator().manual_seed(seed)
    figures: dict[str, dict[str, float]] = {}
    stages: dict[str, Any] = {**guard.denoisers, **guard.detectors}
    if guard.ensemble is not None:
        stages["ensemble"] = guard.ensemble
    learners = {name: stage for name, stage in stages.items() if isinstance(stage, Learner)}
    if learners:
        lesson = _lesson(guard, wire, spec, labels, radius)
        figures |= {name: stage.learn(lesson, rng).figures for name, stage in learners.items()}
    denoisers = {n: s for n, s in guard.denoisers.items() if isinstance(s, Fittable)}
    if denoisers:
        evidence = clean_evidence(guard, wire, spec, views=False)
        figures |= {name: stage.fit(evidence, rng).figures for name, stage in denoisers.items()}
    others: dict[str, Any] = dict(guard.detectors.items())
    if guard.ensemble is not None:
        others["ensemble"] = guard.ensemble
    others = {name: stage for name, stage in others.items() if isinstance(stage, Fittable)}
    if others:
        expensive = {*guard.tier("expensive"), "ensemble"}
        evidence = clean_evidence(guard, wire, spec, views=bool(expensive & others.keys()))
        figures |= {name: stage.fit(evidence, rng).figures for name, stage in others.items()}
    return figures


def _lesson(
    guard: Guard,
    wire: npt.NDArray[Any],
    spec: InputSpec,
    labels: npt.NDArray[np.int64] | None,
    radius: float,
) -> Lesson:
    classifier = guard.classifier
    assert classifier is not None

    def look(x: Tensor) -> Evidence:
        logits, features = classifier(x)
        return Evidence(raw=x, logits={RAW: logits}, features=features)

    to_images = WireInput(spec)
    with torch.no_grad():
        parts = [to_images(torch.from_numpy(wire[n : n + 32])) for n in range(0, len(wire), 32)]
        said = [classifier(part).logits.argmax(dim=1) for part in parts] if labels is None else []
    return Lesson(
        x=torch.cat(parts),
        label=torch.cat(said) if labels is None else torch.from_numpy(labels),
        radius=radius,
        look=look,
        forge=forger(radius, _LESSON_STEPS),
    )


def clean_evidence(
    guard: Guard, wire: npt.NDArray[Any], spec: InputSpec, *, views: bool, batch: int = 32
) -> Evidence:
    """The evidence of clean images: raw batch, logits, features and, if asked for, all views."""
    assert guard.classifier is not None
    to_images = WireInput(spec)
    raw: list[torch.Tensor] = []
    logits: dict[str, list[torch.Tensor]] = {}
    seen: dict[str, list[torch.Tensor]] = {}
    features: dict[str, list[torch.Tensor]] = {tap: [] for tap in guard.classifier.taps}
    with torch.no_grad():
        for start in range(0, len(wire), batch):
            x = to_images(torch.from_numpy(wire[start : start + batch]))
            out = guard.classifier(x)
            raw.append(x)
            logits.setdefault(RAW, []).append(out.logits)
            for name, view in (guard.views(x) if views else {}).items():
                seen.setdefault(name, []).append(view)
                logits.setdefault(name, []).append(guard.classifier(view).logits)
            for tap, values in features.items():
                values.append(out.features[tap])
    return Evidence(
        raw=torch.cat(raw),
        views={name: torch.cat(parts) for name, parts in seen.items()},
        logits={name: torch.cat(parts) for name, parts in logits.items()},
        features={tap: torch.cat(values) for tap, values in features.items()},
    )


@dataclass(frozen=True)
class Measured:
    """What the guard said of N rows.

    Attributes:
        scores: [N], higher is more suspicious; infinite for a fault.
        p_values: [N] conformal; 0 for a fault.
        labels: [N] top class of what would be answered.

    """

    scores: npt.NDArray[np.float64]
    p_values: npt.NDArray[np.float64]
    labels: npt.NDArray[np.intp]


def measure_rows(
    compiled: CompiledGuard,
    calibration: Calibration,
    wire: npt.NDArray[Any],
    log_outputs: bool,
    batch: int = 16,
) -> Measured:
    """A batch through the very code that serves."""
    live = LiveGuard(
        compiled,
        calibration,
        Policy(
            false_positive_rate=0.05, mode="monitor", paranoia=3 if calibration.guard_model else 2
        ),
        model="measured",
        log_outputs=log_outputs,
    )
    scores: list[float] = []
    p_values: list[float] = []
    labels: list[int] = []
    for start in range(0, len(wire), batch):
        part = np.ascontiguousarray(wire[start : start + batch])
        plan = live.plan("")
        answer = live.screen(part, [plan] * len(part))
        labels += [int(label) for label in answer.outputs.argmax(axis=1)]
        for decision in answer.decisions:
            # A fault is refused by default: as suspicious as can be.
            scores.append(np.inf if decision.score is None else decision.score)
            p_values.append(0.0 if decision.p_value is None else decision.p_value)
    return Measured(np.array(scores), np.array(p_values), np.array(labels))
