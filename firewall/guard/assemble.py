"""From a specification to a guard, with every mismatch refused by name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from firewall.bundle.spec import GuardSpec
from firewall.errors import ConfigError, EvidenceMissing
from firewall.guard.classifier import Classifier
from firewall.guard.graph import Guard
from firewall.stages import Adopter, Denoiser, Detector, Ensemble
from firewall.stages.registry import Registry


def assemble(
    spec: GuardSpec,
    registry: Registry,
    classifier: Classifier | None,
    members: Mapping[str, nn.Module] | None = None,
) -> Guard:
    """Build every stage and check that each gets the evidence it needs.

    Args:
        spec: the stages.
        registry: where their plugins are found.
        classifier: embedded, or None for a remote one.
        members: networks that stages may own, by name: [N, C, H, W] in [0, 1] to logits [N, K].

    Raises:
        PluginError: a plugin is missing, broken, or needs evidence that is not there.
        ConfigError: a stage's config is wrong.

    """
    denoisers: dict[str, Denoiser] = {}
    detectors: dict[str, Detector] = {}
    ensemble: Ensemble | None = None
    for stage in spec.stages:
        if hasattr(nn.ModuleDict, stage.name):
            raise ConfigError(f"stages: the name {stage.name!r} is taken by torch; choose another")
        built = registry.build(stage.kind, stage.plugin, stage.config)
        if isinstance(built, Adopter):
            have = members or {}
            missing = [name for name in built.members if name not in have]
            if missing:
                raise EvidenceMissing(
                    f"{stage.kind} {stage.name!r} needs the member {missing[0]!r}; members of the "
                    f"recipe: {', '.join(have) or 'none'}"
                )
            built.adopt({name: have[name] for name in built.members})
        if stage.kind == "denoiser":
            denoisers[stage.name] = built
        elif stage.kind == "detector":
            detectors[stage.name] = built
        else:
            ensemble = built
    if not detectors:
        raise ConfigError("stages: a guard needs at least one detector")
    taps = frozenset(classifier.taps) if classifier is not None else frozenset()
    for name, detector in detectors.items():
        needs = detector.needs
        lacking = needs.features - taps
        if lacking:
            found = ", ".join(sorted(taps)) or "none"
            where = "the classifier" if classifier is not None else "a remote classifier"
            raise EvidenceMissing(
                f"detector {name!r} needs the feature {sorted(lacking)[0]!r}; {where} taps: {found}"
            )
        unknown = needs.views - denoisers.keys()
        if unknown or (needs.all_views and not denoisers):
            wanted = repr(sorted(unknown)[0]) if unknown else "at least one view"
            known = ", ".join(denoisers) or "none"
            raise EvidenceMissing(
                f"detector {name!r} needs {wanted}; denoisers of the guard: {known}"
            )
        if detector.tier == "cheap" and (needs.views or needs.all_views):
            raise EvidenceMissing(
                f"detector {name!r} is cheap and reads views, which are expensive"
            )
    return Guard(
        classifier=classifier, denoisers=denoisers, detectors=detectors, ensemble=ensemble
    ).eval()
