"""The model card, rendered from the manifest and from what was measured. No figure by hand."""

from __future__ import annotations

from typing import Any

from firewall.bundle.manifest import Manifest
from firewall.screening.calibration import Calibration


def percent(value: float) -> str:
    """0.0123 as "1.2 %"."""
    return f"{100 * value:.1f} %"


def interval(pair: list[float] | tuple[float, float]) -> str:
    """(0.01, 0.03) as "1.0 to 3.0 %"."""
    return f"{100 * pair[0]:.1f} to {100 * pair[1]:.1f} %"


def false_positive_rows(name: str, figures: dict[str, Any]) -> list[str]:
    """Table rows: set, promised, measured, interval by crop, interval by photograph."""
    rows: list[str] = []
    for rate in ("0.01", "0.05"):
        one = figures[rate]
        rows.append(
            f"| {name} ({figures['photographs']} photographs, {figures['rows']} crops) | "
            f"{percent(float(rate))} | {percent(one['rate'])} | {interval(one['interval'])} | "
            f"{interval(one['interval_by_photograph'])} |"
        )
    return rows


FALSE_POSITIVE_HEAD = [
    "| clean set | promised | measured | 95 % by crop | 95 % by photograph |",
    "|---|---|---|---|---|",
]

#: Belongs beside every table of the default bundle.
SELECTION = (
    "None of these photographs took part in calibration. The stages of the recipe, however, were "
    "chosen after a first look at figures on them, so the figures are a little too kind."
)

DETECTION_HEAD = [
    "| attack | knowledge | radius | fools the bare classifier | AUROC | refused at 1 % | "
    "refused at 5 % | accepted at 1 % with a wrong answer |",
    "|---|---|---|---|---|---|---|---|",
]


def detection_rows(attacks: list[dict[str, Any]]) -> list[str]:
    """Table rows of attacks."""
    return [
        f"| {one['name']} | {one['knowledge']} | {one['radius_255']}/255 | "
        f"{percent(one['success_rate'])} | {one['auroc']:.3f} | "
        f"{percent(one['detected_at']['0.01'])} | "
        f"{percent(one['detected_at']['0.05'])} | {percent(one['fooled_and_accepted'])} |"
        for one in attacks
    ]


def suite_lines(suite: dict[str, Any]) -> list[str]:
    """The whole suite of `firewall evaluate`: its warnings, its attacks, its worst case."""
    worst, model = suite["worst_case"], suite["threat_model"]
    radius = f"{255 * model['radius']:g}/255"
    return [
        f"The whole suite on {suite['n']} images, {model['norm']} {radius}, at "
        f"{percent(suite['policy']['false_positive_rate'])} promised false positives, "
        f"{suite['effort']['steps']} steps, {suite['effort']['queries']} queries:",
        "",
        *(f"- **Warning:** {line}." for line in suite["warnings"] or ["none was raised"]),
        "",
        "| attack | knowledge | fools the bare classifier | refused | accepted with a wrong answer "
        "| 95 % | AUROC |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {one['name']}{'' if one['bounded'] else ' (no radius)'} | {one['knowledge']} | "
            f"{percent(one['fooled_bare_rate'])} | {percent(one['detected_rate'])} | "
            f"{percent(one['success_rate'])} | {interval(one['success_interval'])} | "
            f"{one['auroc']:.3f} |"
            for one in suite["attacks"]
        ),
        "",
        f"Worst case over all attacks within the radius: **{percent(worst['robust_accuracy'])}** "
        f"of images stand ({interval(worst['interval'])}); of the bare classifier "
        f"{percent(worst['bare_robust_accuracy'])}.",
        *certificate_lines(suite.get("certified")),
    ]


def generated_lines(found: dict[str, Any] | None) -> list[str]:
    """What generated images were worth in training, also when that is nothing."""
    if found is None:
        return []
    judged, chosen = found["judged"], found["chosen_ratio"]
    floor = judged["floor"]["frechet_distance"]
    tried = ", ".join(f"{percent(v)} with {float(r):.0%}" for r, v in found["selection"].items())
    said = (
        f"The network was trained with {chosen:.0%} of each batch generated."
        if chosen
        else "**None was clearly better than none: the network was trained on real images alone.**"
    )
    return [
        "## Generated images",
        "",
        f"Accuracy under attack on selection data by share of each batch: {tried}. {said}",
        "",
        f"Of the generated images: Fréchet distance {judged['frechet_distance']:.3g} (of real "
        f"training images {floor:.3g}), precision {judged['precision']:.2f}, recall "
        f"{judged['recall']:.2f}; by extractor `{judged['extractor'][:12]}`. Whether an image was "
        "trained on is told from them with an AUROC of "
        f"{judged['privacy']['membership_auroc']:.3f} (0.5 is a guess).",
        "",
    ]


def certificate_lines(found: dict[str, Any] | None) -> list[str]:
    """What interval bounds prove; nothing for a classifier without them."""
    if found is None:
        return []
    sure, served = found["accuracy"], found["paranoia_4"]
    proven, refused = served["accepted_and_correct"], served["refused"]
    return [
        "",
        f"Certified at {found['radius']:g} and right, deterministic: **{percent(sure['value'])}** "
        f"({interval(sure['interval'])}); {found['violations']} violations in {found['tries']} "
        "tries of the attacks above. Under `paranoia = 4`: "
        f"**{percent(proven['value'])}** ({interval(proven['interval'])}) accepted, right and "
        f"proven to stand, {percent(refused['value'])} of clean images refused.",
    ]


def render(manifest: Manifest, calibration: Calibration, evaluation: dict[str, Any]) -> str:
    """The card of a bundle.

    Args:
        manifest: of the bundle.
        calibration: of the bundle.
        evaluation: `held_out`, measured when the bundle was built, and `reference` (or None),
            measured by the benchmarks on bundles of the same recipe; or `suite`, measured on this
            very bundle.

    """
    spec = manifest.input
    stages = [
        f"| {stage.name} | {stage.kind} | {stage.plugin} | "
        + ("cheap |" if stage.name in calibration.detectors[: calibration.cheap] else "expensive |")
        for stage in manifest.guard.stages
    ]
    least = 1 / (len(calibration.part_b) + 1)
    share = calibration.cascade(least).escalated_share
    lines = [
        f"# Model card: {manifest.name} {manifest.version}",
        "",
        f"{manifest.classifier.architecture}, {manifest.classifier.classes} classes, behind a "
        "robustness guard.",
        "",
        f"Input `{spec.name}`: {spec.datatype} {spec.layout} "
        f"[rows, {', '.join(str(n) for n in spec.shape)}]. "
        f"Output `{manifest.output}`: FP32 [rows, {manifest.classifier.classes}].",
        "",
        "## Stages",
        "",
        "| name | kind | plugin | tier |",
        "|---|---|---|---|",
        *stages,
        "",
        "## Promised false-positive rate",
        "",
        f"Calibrated on {len(calibration.part_a)} + {len(calibration.part_b)} images. Any rate "
        f"from {least:.2g} up can be chosen, up to {share:.2g}, the share of clean images that the "
        "cheap tier hands on. "
        + (
            "It is promised to each class that the classifier names, where enough of the images "
            "are of it, and to the other classes together. "
            if calibration.by_class
            else ""
        )
        + "**The promise is for inputs that are exchangeable with the "
        "calibration images**, and for nothing else: images from another camera, of another "
        "subject or through another encoder are not. Where the calibration images are crops of "
        "few photographs, as in the default bundle, it does not extend to new photographs; how "
        "far off it is there is measured below. Calibrate on your own traffic.",
        "",
        "Measured when this bundle was built, on held-out images:",
        "",
        *FALSE_POSITIVE_HEAD,
        *false_positive_rows("held-out photographs", evaluation["held_out"]),
        "",
        "## Measured against attacks",
        "",
    ]
    reference = evaluation.get("reference")
    if reference is None and evaluation.get("suite"):
        lines += [*suite_lines(evaluation["suite"]), ""]
    elif reference is None:
        lines += ["Not measured for this recipe.", ""]
    else:
        lines += [
            f"Measured on a bundle of the same recipe (`{reference['recipe'][:12]}`), on "
            f"{reference['attacked']['rows']} crops of {reference['attacked']['photographs']} "
            "photographs by `python -m benchmarks.default_bundle`. " + SELECTION,
            "",
            *FALSE_POSITIVE_HEAD,
            *(
                row
                for name, figures in reference["clean"].items()
                for row in false_positive_rows(name, figures)
            ),
            "",
            *DETECTION_HEAD,
            *detection_rows(reference["attacks"]),
            "",
        ]
        if reference.get("suite"):
            lines += [*suite_lines(reference["suite"]), ""]
    lines += generated_lines(evaluation.get("augment"))
    lines += [
        "Oblivious attackers attack the bare classifier and know nothing of the guard; several "
        "of them get through all the same. The adaptive attacker optimises against the guard "
        "itself. Against that one **nothing is claimed**.",
        "",
        "## Provenance",
        "",
        f"Recipe `{manifest.provenance.recipe[:12]}`, seed {manifest.provenance.seed}, made "
        f"{manifest.provenance.created} by {manifest.provenance.producer}.",
        "",
    ]
    return "\n".join(lines)
