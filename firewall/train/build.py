"""From an assembled guard to a signed bundle: fit, compile, parity, calibrate, self-test, sign."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from firewall import __version__
from firewall.bundle.manifest import ClassifierSpec, Manifest, Provenance, ThreatModel
from firewall.bundle.signing import Signer
from firewall.bundle.spec import GuardSpec, InputSpec, Preprocessing
from firewall.bundle.store import write_bundle
from firewall.evaluation.measure import false_positives
from firewall.guard.assemble import assemble
from firewall.guard.classifier import Classifier
from firewall.guard.compile import compile_denoised, compile_embedded
from firewall.guard.graph import Guard
from firewall.guard.parity import check_denoised, check_parity, check_row_independence
from firewall.screening.calibration import Calibration, Untaught
from firewall.screening.compiled import CompiledGuard, GuardGraphs
from firewall.screening.live import LiveGuard
from firewall.screening.policy import Policy
from firewall.screening.preprocess import to_wire
from firewall.screening.selftest import SelfTest
from firewall.stages import Adopter, Denoiser
from firewall.stages.registry import Registry
from firewall.train.card import render
from firewall.train.fit_stages import LESSON_RADIUS, Material, fit_denoiser, fit_stages
from firewall.train.smoothing_table import SmoothingSpec, tabulate

#: Real images on which a finished guard is held to what stages promise.
_LAW_ROWS = 6
#: Told what begins.
Progress = Callable[[str], None]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Data:
    """Clean images by part, each [N, H, W, C] uint8, from disjoint sources.

    Attributes:
        fit: by which stages are fitted.
        held_out: on which the false-positive rate is measured.
        held_out_groups: [N] source of each held-out image.
        names: by part, "name sha256" of the files.

    """

    fit: Pixels
    held_out: Pixels
    held_out_groups: npt.NDArray[np.intp]
    names: Mapping[str, tuple[str, ...]]
    #: [N] classes of `fit`; what the classifier says of them when left out.
    fit_labels: npt.NDArray[np.int64] | None = None


class Calibrate(Protocol):
    """How a compiled guard gets its calibration."""

    def __call__(
        self, guard: Guard, graphs: Mapping[str, bytes], compiled: CompiledGuard, spec: InputSpec
    ) -> Calibration:
        """Calibrate.

        Args:
            guard: as it was compiled.
            graphs: its graphs, by name.
            compiled: the same, opened.
            spec: what clients send.

        """


@dataclass(frozen=True)
class ByRows:
    """Calibration on clean rows, each of which stands for itself.

    Attributes:
        part_a: [N, H, W, C] uint8, reference of each statistic.
        part_b: [M, H, W, C] uint8, on which the combination is calibrated.
        escalation: share of clean rows for the expensive tier.
        by_class: whether the false-positive rate is promised to each class that the classifier
            names, where calibration has enough of it.
        combination: of the detectors' p-values.

    """

    part_a: Pixels
    part_b: Pixels
    escalation: float
    by_class: bool = False
    combination: Untaught = "fisher"

    def __call__(
        self, guard: Guard, graphs: Mapping[str, bytes], compiled: CompiledGuard, spec: InputSpec
    ) -> Calibration:
        """Compute the statistics of both parts by the compiled guard."""
        part_a, part_b = to_wire(self.part_a, spec), to_wire(self.part_b, spec)
        return Calibration(
            detectors=tuple(guard.tier("cheap") + guard.tier("expensive")),
            cheap=len(guard.tier("cheap")),
            part_a=compiled.both(part_a)[1].astype(np.float64),
            part_b=compiled.both(part_b)[1].astype(np.float64),
            said_a=_said(compiled, part_a) if self.by_class else None,
            said_b=_said(compiled, part_b) if self.by_class else None,
            escalation=self.escalation,
            combination=self.combination,
            guard_model=tuple(
                name for name, stage in guard.detectors.items() if isinstance(stage, Adopter)
            ),
        )


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
    #: Of false positives, for which the bundle is made; None leaves it to the policy's default.
    promised_rate: float | None = None


def build(
    target: Path,
    *,
    identity: Identity,
    classifier: Classifier,
    guard_spec: GuardSpec,
    input_spec: InputSpec,
    preprocessing: Preprocessing,
    data: Data,
    calibrate: Calibrate,
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
        data: clean images.
        calibrate: makes the calibration.
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
    material = Material(
        to_wire(data.fit, input_spec),
        input_spec,
        data.fit_labels,
        threat.radius if threat.norm == "linf" else LESSON_RADIUS,
    )
    fitted = fit_stages(guard, material, identity.seed)
    progress("compiling to ONNX")
    graphs = compile_embedded(guard, input_spec)
    before_votes: Denoiser | None = None
    if smoothing is not None and smoothing.denoiser is not None:
        before_votes = registry.build(
            "denoiser", smoothing.denoiser.plugin, smoothing.denoiser.config
        )
        fitted["smoothing.denoiser"] = fit_denoiser(before_votes, guard, material, identity.seed)
        graphs["smoothed.onnx"] = compile_denoised(classifier, before_votes, input_spec)
    compiled = CompiledGuard(graphs)
    progress("comparing ONNX with torch")
    check_parity(guard, compiled, input_spec)
    # Of the images themselves: on noise, stages are often where they change nothing.
    few = to_wire(data.held_out[:_LAW_ROWS], input_spec)
    check_row_independence(guard, lambda rows: compiled.both(few[rows]), len(few))
    if before_votes is not None:
        check_denoised(classifier, before_votes, compiled, input_spec)
    progress("calibrating")
    calibration = calibrate(guard, graphs, compiled, input_spec)
    progress(f"measuring false positives on {len(data.held_out)} held-out images")
    held_out = measure_rows(
        compiled, calibration, to_wire(data.held_out, input_spec), bool(guard_spec.of("ensemble"))
    )
    evaluation = {
        "held_out": false_positives(
            held_out.p_values,
            data.held_out_groups,
            promisable({identity.promised_rate or 0.01, 0.05}, calibration.units),
        ),
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
        promised_rate=identity.promised_rate,
        provenance=Provenance(
            created=identity.created or datetime.now(UTC).isoformat(timespec="seconds"),
            producer=f"robustness-firewall {__version__}",
            recipe=identity.recipe,
            seed=identity.seed,
            libraries=libraries(),
            data=dict(data.names),
            fitted=fitted,
        ),
        files={},
    )
    progress("writing the bundle")
    selftest = SelfTest.record(compiled, to_wire(data.held_out[:2], input_spec))
    SelfTest.from_npz(selftest.to_npz()).run(CompiledGuard(graphs))
    files = {
        **graphs,
        "calibration.json": calibration.to_json(),
        "labels.json": json.dumps(list(identity.labels), allow_nan=False).encode(),
        "selftest.npz": selftest.to_npz(),
        "evaluation.json": json.dumps(evaluation, indent=1, allow_nan=False).encode(),
        "MODEL_CARD.md": render(manifest, calibration, evaluation).encode(),
    }
    if smoothing is not None:
        files["smoothing.json"] = tabulate(smoothing).to_json()
    return write_bundle(target, manifest, files, signer)


def libraries() -> dict[str, str]:
    """Versions of what takes part in making a bundle."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": version("onnx"),
        "numpy": np.__version__,
    }


def promisable(rates: set[float], rows: int) -> tuple[float, ...]:
    """Those of some rates that so many calibration rows can promise; the least rate if none is."""
    least = 1 / (rows + 1)
    return tuple(sorted(rate for rate in rates if rate >= least)) or (least,)


def _said(
    compiled: CompiledGuard, wire: npt.NDArray[Any], batch: int = 64
) -> npt.NDArray[np.int64]:
    """[N] classes that the classifier alone names."""
    parts = [
        compiled.cheap(np.ascontiguousarray(wire[n : n + batch])).logits.argmax(axis=1)
        for n in range(0, len(wire), batch)
    ]
    return np.concatenate(parts).astype(np.int64)


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
    compiled: GuardGraphs,
    calibration: Calibration,
    wire: npt.NDArray[Any],
    log_outputs: bool,
    batch: int = 16,
) -> Measured:
    """A batch through the very code that serves."""
    # Scores and p-values are the same at every rate; one that cannot be promised would be refused.
    [rate] = promisable({0.05}, calibration.units)
    live = LiveGuard(
        compiled,
        calibration,
        Policy(
            false_positive_rate=rate, mode="monitor", paranoia=3 if calibration.guard_model else 2
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
        labels += answer.classes.tolist()
        for decision in answer.decisions:
            # A fault is refused by default: as suspicious as can be.
            scores.append(np.inf if decision.score is None else decision.score)
            p_values.append(0.0 if decision.p_value is None else decision.p_value)
    return Measured(np.array(scores), np.array(p_values), np.array(labels))
