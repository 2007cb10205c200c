"""Stages that learn: from clean images, or from forgeries of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from firewall.bundle.spec import InputSpec
from firewall.errors import EvidenceMissing
from firewall.guard.classifier import Classifier, LogitsOnly
from firewall.guard.graph import Guard
from firewall.guard.wire_input import WireInput
from firewall.stages import RAW, Denoiser, Evidence, Examples, Fittable, Learner, Lesson, forger
from firewall.train.examples import make_examples

#: Of forgeries that stages learn from, where the threat model names no L-infinity radius.
LESSON_RADIUS = 8 / 255
_LESSON_STEPS = 7
_EXAMPLES = 480


@dataclass(frozen=True)
class Material:
    """What stages learn from.

    Attributes:
        wire: [N, *shape] clean rows.
        spec: of the wire.
        labels: [N] their classes; what the classifier says when None.
        radius: L-infinity, of forgeries.
        steps: of the attacker who makes them.
        examples: forgeries of many kinds, where a stage asks for examples.

    """

    wire: npt.NDArray[Any]
    spec: InputSpec
    labels: npt.NDArray[np.int64] | None = None
    radius: float = LESSON_RADIUS
    steps: int = _LESSON_STEPS
    examples: int = _EXAMPLES


#: Evidence about the rows of a material: with `views`, of the views as well.
Look = Callable[[Material, bool], Evidence]


def fit_stages(guard: Guard, material: Material, seed: int) -> dict[str, dict[str, float]]:
    """Teach and fit every stage that can be; figures by stage.

    Args:
        guard: with its classifier; its stages are changed in place.
        material: clean rows.
        seed: of every draw.

    """
    classifier = guard.classifier
    assert classifier is not None
    return _fit(guard, material, seed, classifier, lambda of, views: clean_evidence(
        guard, of, views=views
    ))  # fmt: skip


def fit_around(
    guard: Guard, material: Material, seed: int, look: Look, stand_in: Classifier | None
) -> dict[str, dict[str, float]]:
    """Teach and fit the stages of a guard whose classifier is served elsewhere.

    Args:
        guard: without a classifier; its stages are changed in place.
        material: clean rows.
        seed: of every draw.
        look: evidence, by what the served classifier answers.
        stand_in: a network of the same classes, to forge on; None where there is none.

    Raises:
        EvidenceMissing: a stage learns from forgeries, and there is nothing to forge on.

    """
    return _fit(guard, material, seed, stand_in, look)


def _fit(
    guard: Guard, material: Material, seed: int, forge_on: Classifier | None, look: Look
) -> dict[str, dict[str, float]]:
    """Denoisers first: what they learn changes the views that detectors are fitted on."""
    rng = torch.Generator().manual_seed(seed)
    figures: dict[str, dict[str, float]] = {}
    stages: dict[str, Any] = {**guard.denoisers, **guard.detectors}
    if guard.ensemble is not None:
        stages["ensemble"] = guard.ensemble
    learners = {name: stage for name, stage in stages.items() if isinstance(stage, Learner)}
    if learners:
        if forge_on is None:
            raise EvidenceMissing(
                f"stage {next(iter(learners))!r} learns from forgeries, which take a classifier's "
                "gradient; a served one gives none. Name a stand-in with --surrogate"
            )
        lesson = _lesson(forge_on, material, seed)
        figures |= {name: stage.learn(lesson, rng).figures for name, stage in learners.items()}
    denoisers = {n: s for n, s in guard.denoisers.items() if isinstance(s, Fittable)}
    if denoisers:
        evidence = look(material, False)
        figures |= {name: stage.fit(evidence, rng).figures for name, stage in denoisers.items()}
    others: dict[str, Any] = dict(guard.detectors.items())
    if guard.ensemble is not None:
        others["ensemble"] = guard.ensemble
    others = {name: stage for name, stage in others.items() if isinstance(stage, Fittable)}
    if others:
        expensive = {*guard.tier("expensive"), "ensemble"}
        evidence = look(material, bool(expensive & others.keys()))
        figures |= {name: stage.fit(evidence, rng).figures for name, stage in others.items()}
    return figures


def fit_denoiser(
    denoiser: Denoiser, guard: Guard, material: Material, seed: int
) -> dict[str, float]:
    """Teach or fit a denoiser that stands before the guard's classifier and is no view of it."""
    rng = torch.Generator().manual_seed(seed)
    if isinstance(denoiser, Learner):
        assert guard.classifier is not None
        return denoiser.learn(_lesson(guard.classifier, material, seed), rng).figures
    if isinstance(denoiser, Fittable):
        return denoiser.fit(clean_evidence(guard, material, views=False), rng).figures
    return {}


def _lesson(classifier: Classifier, material: Material, seed: int) -> Lesson:
    wire, labels = material.wire, material.labels

    def look(x: Tensor) -> Evidence:
        logits, features = classifier(x)
        return Evidence(raw=x, logits={RAW: logits}, features=features)

    to_images = WireInput(material.spec)
    with torch.no_grad():
        parts = [to_images(torch.from_numpy(wire[n : n + 32])) for n in range(0, len(wire), 32)]
        said = [classifier(part).logits.argmax(dim=1) for part in parts] if labels is None else []
    x = torch.cat(parts)
    label = torch.cat(said) if labels is None else torch.from_numpy(labels)

    @cache
    def examples() -> Examples:
        return make_examples(
            LogitsOnly(classifier), x, label, material.radius, material.examples, seed
        )

    return Lesson(
        x=x,
        label=label,
        radius=material.radius,
        look=look,
        forge=forger(material.radius, material.steps),
        examples=examples,
    )


def clean_evidence(guard: Guard, material: Material, *, views: bool, batch: int = 32) -> Evidence:
    """The evidence of clean images: raw batch, logits, features and, if asked for, all views."""
    assert guard.classifier is not None
    wire = material.wire
    to_images = WireInput(material.spec)
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
