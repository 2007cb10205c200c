"""A bundle for a classifier that is served elsewhere, and whose weights nobody here sees."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from firewall import __version__
from firewall.bundle.manifest import ClassifierSpec, Manifest, Provenance, ThreatModel
from firewall.bundle.signing import Signer
from firewall.bundle.spec import GuardSpec, InputSpec, Preprocessing, StageSpec
from firewall.bundle.store import write_bundle
from firewall.errors import ConfigError, EvidenceMissing
from firewall.evaluation.measure import false_positives
from firewall.guard.assemble import assemble
from firewall.guard.compile import Post, compile_remote, input_only
from firewall.guard.graph import Guard
from firewall.guard.parity import BATCHES, check_row_independence, compare, parity_batches
from firewall.guard.wire_input import WireInput
from firewall.screening.calibration import Calibration, Combination, least_sample
from firewall.screening.remote import (
    RemoteClassifier,
    RemoteGuard,
    RemoteSpec,
    Replay,
    check_answers,
)
from firewall.screening.selftest import SelfTest
from firewall.stages import RAW, Evidence, Fittable, Learner
from firewall.stages.registry import Registry
from firewall.train.build import libraries, measure_rows, promisable
from firewall.train.card import render

#: What guards a classifier of which nothing but answers can be had: views of the image, and what
#: the image itself tells. The classifier answers for itself: no ensemble.
DEFAULT = GuardSpec(
    stages=(
        StageSpec(kind="denoiser", name="blur", plugin="gaussian-blur", config={"sigma": 1.3}),
        StageSpec(kind="denoiser", name="median", plugin="median"),
        StageSpec(kind="detector", name="noise-floor", plugin="noise-floor"),
        StageSpec(kind="detector", name="view-consistency", plugin="view-consistency"),
    )
)
#: Shares of the images by which stages are fitted, and on which the promise is measured.
_FIT, _HELD = 0.2, 0.2
_BATCH = 16


@dataclass(frozen=True)
class RemoteIdentity:
    """How the bundle is called, and what its classifier is.

    Attributes:
        name: model name under which it is served: the classifier's own, so that clients stay as
            they are.
        version: of the bundle.
        architecture: what the classifier is, for people.
        labels: names of its classes.
        output: name of its output tensor.
        probabilities: whether that holds probabilities and not logits.
        seed: of every draw.

    """

    name: str
    version: str
    architecture: str
    labels: tuple[str, ...]
    output: str
    probabilities: bool = False
    seed: int = 0


def calibrate_remote(
    target: Path,
    classifier: RemoteClassifier,
    wire: npt.NDArray[Any],
    identity: RemoteIdentity,
    input_spec: InputSpec,
    preprocessing: Preprocessing,
    signer: Signer,
    registry: Registry,
    *,
    guard_spec: GuardSpec = DEFAULT,
    rate: float = 0.01,
    combination: Combination = "fisher",
    progress: Callable[[str], None] = lambda step: None,
) -> str:
    """Make a bundle; returns its digest.

    Args:
        target: a directory that does not exist yet.
        classifier: is asked about every image and every view of it, twice.
        wire: [N, *input shape] clean images, as clients send them.
        identity: names.
        input_spec: what clients send.
        preprocessing: of encoded images.
        signer: whose signature the bundle gets.
        registry: plugins.
        guard_spec: stages; none may learn from forgeries, which take the classifier's gradient.
        rate: false positives that it must be able to promise.
        combination: of the detectors' p-values.
        progress: told each step.

    Raises:
        FirewallError: a step failed; nothing is left at `target`.

    """
    parts = _parts(len(wire), rate, identity.seed)
    progress("assembling the guard")
    guard = assemble(guard_spec, registry, None)
    halves = RemoteSpec(
        output="probabilities" if identity.probabilities else "logits",
        pre=tuple(input_only(guard)),
        post=tuple(name for name in guard.detectors if name not in input_only(guard)),
        views=len(guard.denoisers),
    )
    progress("fitting the stages")
    fitted = _fit(guard, classifier, halves, wire[parts["fit"]], input_spec, identity)
    progress("compiling to ONNX")
    graphs = compile_remote(guard, input_spec, len(identity.labels))
    detectors = (*guard.tier("cheap"), *guard.tier("expensive"))
    cheap = len(guard.tier("cheap"))
    remote = RemoteGuard(graphs, halves, detectors, cheap, classifier)
    progress("comparing ONNX with torch")
    _check_parity(guard, remote, halves, input_spec, len(identity.labels))
    progress(f"calibrating on {len(parts['a'])} + {len(parts['b'])} images")
    calibration = Calibration(
        detectors=detectors,
        cheap=cheap,
        part_a=remote.both(wire[parts["a"]], _BATCH)[1].astype(np.float64),
        part_b=remote.both(wire[parts["b"]], _BATCH)[1].astype(np.float64),
        # Everything is asked in one call: nothing is saved by judging on a part of it.
        escalation=1.0,
        combination=combination,
    )
    progress(f"measuring false positives on {len(parts['held'])} held-out images")
    held = wire[parts["held"]]
    measured = measure_rows(
        remote, calibration, held, bool(guard_spec.of("ensemble")), batch=_BATCH
    )
    evaluation = {
        "held_out": false_positives(
            measured.p_values, np.arange(len(held)), promisable({rate, 0.05}, len(parts["b"]))
        ),
        "reference": None,
    }
    manifest = Manifest(
        name=identity.name,
        version=identity.version,
        classifier=ClassifierSpec(
            kind="remote", architecture=identity.architecture, classes=len(identity.labels)
        ),
        input=input_spec,
        output=identity.output,
        preprocessing=preprocessing,
        guard=guard_spec,
        # Nothing is claimed.
        threat_model=ThreatModel(norm="linf", radius=4 / 255, evaluated=()),
        promised_rate=rate,
        provenance=Provenance(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            producer=f"robustness-firewall {__version__}",
            recipe=_digest(guard_spec, input_spec, identity, rate, combination),
            seed=identity.seed,
            libraries=libraries(),
            data={part: (f"{len(rows)} images",) for part, rows in parts.items()},
            fitted=fitted,
        ),
        files={},
    )
    progress("writing the bundle")
    files = {
        **graphs,
        "remote.json": halves.to_json(),
        "calibration.json": calibration.to_json(),
        "labels.json": json.dumps(list(identity.labels), allow_nan=False).encode(),
        "selftest.npz": SelfTest.record(remote, held[:2]).to_npz(),
        "evaluation.json": json.dumps(evaluation, indent=1, allow_nan=False).encode(),
        "MODEL_CARD.md": render(manifest, calibration, evaluation).encode(),
    }
    return write_bundle(target, manifest, files, signer)


def _digest(
    guard_spec: GuardSpec,
    input_spec: InputSpec,
    identity: RemoteIdentity,
    rate: float,
    combination: Combination,
) -> str:
    """Of everything that was chosen."""
    body = {
        "guard": guard_spec.model_dump(mode="json"),
        "input": input_spec.model_dump(mode="json"),
        "identity": asdict(identity),
        "rate": rate,
        "combination": combination,
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _parts(rows: int, rate: float, seed: int) -> dict[str, npt.NDArray[np.intp]]:
    """Disjoint rows to fit, for both parts of calibration, and held out."""
    fit, held = round(_FIT * rows), round(_HELD * rows)
    each, need = (rows - fit - held) // 2, least_sample(rate)
    if each < need:
        wanted = int(np.ceil(2 * need / (1 - _FIT - _HELD))) + 2
        raise ConfigError(
            f"--false-positive-rate: {rate:g} needs about {wanted} images; {rows} were given: "
            "bring more, or choose a higher rate"
        )
    order = np.random.default_rng(seed).permutation(rows)
    ends = np.cumsum([fit, each, each])
    return dict(zip(("fit", "a", "b", "held"), np.split(order, ends), strict=True))


def _fit(
    guard: Guard,
    classifier: RemoteClassifier,
    halves: RemoteSpec,
    wire: npt.NDArray[Any],
    spec: InputSpec,
    identity: RemoteIdentity,
) -> dict[str, dict[str, float]]:
    """Fit the stages that are fitted on clean evidence; returns figures by stage."""
    stages: dict[str, Any] = {**guard.denoisers, **guard.detectors}
    if guard.ensemble is not None:
        stages["ensemble"] = guard.ensemble
    learners = [name for name, stage in stages.items() if isinstance(stage, Learner)]
    if learners:
        raise EvidenceMissing(
            f"stage {learners[0]!r} learns from forgeries, which take the classifier's gradient; a "
            "remote classifier gives none"
        )
    fittable = {name: stage for name, stage in stages.items() if isinstance(stage, Fittable)}
    if not fittable:
        return {}
    rng = torch.Generator().manual_seed(identity.seed)
    evidence = _evidence(guard, classifier, halves, wire, spec, len(identity.labels))
    return {name: stage.fit(evidence, rng).figures for name, stage in fittable.items()}


def _evidence(
    guard: Guard,
    classifier: RemoteClassifier,
    halves: RemoteSpec,
    wire: npt.NDArray[Any],
    spec: InputSpec,
    classes: int,
) -> Evidence:
    """Gather what the guard sees of clean rows, with the classifier asked as when serving."""
    images = WireInput(spec)
    raw: list[torch.Tensor] = []
    views: dict[str, list[torch.Tensor]] = {name: [] for name in guard.denoisers}
    logits: dict[str, list[torch.Tensor]] = {name: [] for name in (RAW, *guard.denoisers)}
    with torch.no_grad():
        for start in range(0, len(wire), _BATCH):
            part = torch.from_numpy(np.ascontiguousarray(wire[start : start + _BATCH]))
            x = images(part)
            seen = guard.views(x)
            asked = torch.cat([part, *(images.back(view) for view in seen.values())])
            answers = classifier.infer(asked.contiguous().numpy(), None)
            check_answers(answers, len(asked), classes)
            by_view = torch.from_numpy(halves.logits(answers)).reshape(len(seen) + 1, len(part), -1)
            raw.append(x)
            for index, name in enumerate(logits):
                logits[name].append(by_view[index])
            for name, view in seen.items():
                views[name].append(view)
    return Evidence(
        raw=torch.cat(raw),
        views={name: torch.cat(parts) for name, parts in views.items()},
        logits={name: torch.cat(parts) for name, parts in logits.items()},
    )


def _check_parity(
    guard: Guard, remote: RemoteGuard, halves: RemoteSpec, spec: InputSpec, classes: int
) -> None:
    """Both halves as served against torch, around answers that are drawn.

    Raises:
        ParityError: they differ.

    """
    for wire, rows in parity_batches(spec):
        draws = torch.Generator().manual_seed(len(wire))
        said = torch.randn(halves.views + 1, len(wire), classes, generator=draws)
        answers = said.reshape(-1, classes)
        if halves.output == "probabilities":
            answers = answers.softmax(dim=1)
            said = torch.from_numpy(halves.logits(answers.numpy())).reshape(said.shape)
        found = remote.with_classifier(Replay(answers.numpy())).both(wire.numpy(), batch=len(wire))
        with torch.no_grad():
            expected = Post(guard, spec)(wire, said)
            x = WireInput(spec)(wire)
            before = {name: guard.detectors[name](Evidence(raw=x)) for name in halves.pre}
        after = dict(zip(halves.post, expected[1].T if halves.post else [], strict=True))
        order = (*guard.tier("cheap"), *guard.tier("expensive"))
        statistics = torch.stack([(before | after)[name] for name in order], dim=1)
        compare(guard, (expected[0], statistics), found, rows)
        by_row = answers.reshape(halves.views + 1, len(wire), classes)
        if len(wire) == BATCHES[-1]:
            check_row_independence(
                guard,
                lambda chosen, by_row=by_row, wire=wire: remote.with_classifier(  # type: ignore[misc]
                    Replay(by_row[:, chosen].reshape(-1, classes).numpy())
                ).both(wire.numpy()[chosen], batch=len(chosen)),
                len(wire),
            )
