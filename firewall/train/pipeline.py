"""A recipe run: data, training, guard, evaluation, gate, signature.

Each step is a pure function of its settings and of the steps before it, kept in a folder under
`OUT/steps`. Killed at any moment and started again, a run goes on where it was, and on the same
machine ends with the same bundle, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from firewall.attack.suite import SUITES
from firewall.bundle.manifest import ThreatModel
from firewall.bundle.signing import Signer
from firewall.bundle.spec import InputSpec, Preprocessing
from firewall.bundle.store import open_bundle, write_bundle
from firewall.errors import ConfigError, GateFailed, TrainingError
from firewall.evaluation.provenance import provenance
from firewall.evaluation.report import write_report
from firewall.evaluation.request import Request
from firewall.evaluation.run import evaluate
from firewall.evaluation.surrogates import trained_surrogates
from firewall.evaluation.target import BundleTarget
from firewall.guard.assemble import assemble
from firewall.screening.calibration import Calibration, least_of_class, least_sample
from firewall.stages.registry import Registry
from firewall.train.augmentation import NothingLeft, best_ratio, generated_images, load_generated
from firewall.train.build import ByRows, Data, Identity, build
from firewall.train.card import render
from firewall.train.fit_network import Generated, fit_network
from firewall.train.inventory import Inventory
from firewall.train.networks import Cnn, make_network
from firewall.train.objectives import Apart
from firewall.train.parts import data_step, read_parts
from firewall.train.processes import Processes
from firewall.train.recipe import MemberSpec, Recipe
from firewall.train.run_lock import locked
from firewall.train.sources import (
    PARTS,
    Labelled,
    images,
)
from firewall.train.steps import Steps, digest, write_json

#: Images on which the evaluation's attacker trains networks of its own.
_SURROGATE_ROWS = 3000


@dataclass(frozen=True)
class Run:
    """What a recipe run made: the signed bundle, its figures, and its folder."""

    bundle: Path
    summary: dict[str, Any]


def run(
    recipe: Recipe,
    base: Path,
    out: Path,
    signer: Signer,
    registry: Registry,
    *,
    device: str = "cpu",
    jobs: int = 1,
    processes: Processes | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Run | None:
    """Run a recipe.

    Args:
        recipe: checked.
        base: folder from which its relative paths count.
        out: for everything; `bundle`, `evaluation.json`, `report.html` and `log.jsonl` in the end.
        signer: whose signature the bundle gets.
        registry: plugins.
        device: `cpu` or `cuda`, of the training.
        jobs: processes of the evaluation.
        processes: that share the training; alone when None.
        progress: told each step.

    Returns:
        What was made; None in all but the first of several processes.

    Raises:
        ConfigError: the data is not what the recipe says.
        GateFailed: the bundle does not reach what the recipe asks for; nothing is signed.
        TrainingError: a step failed; what was finished is kept.

    """
    processes = processes or Processes()
    # Before anything is written: a run that is refused claims no folder.
    parts, inventory = check(recipe, base, registry)
    for line in inventory.lines():
        progress(line)
    with ExitStack() as held:
        if processes.first:
            held.enter_context(locked(out))
        return _run(
            recipe, parts, inventory, out, signer, registry, device, jobs, processes, progress
        )


def _run(
    recipe: Recipe,
    parts: dict[str, Labelled],
    inventory: Inventory,
    out: Path,
    signer: Signer,
    registry: Registry,
    device: str,
    jobs: int,
    processes: Processes,
    progress: Callable[[str], None],
) -> Run | None:
    started = _started(out) if processes.first else ""
    processes.wait()
    steps = Steps(out / "steps", progress, writes=processes.first)
    classes = len(inventory.labels)
    shape = (recipe.data.channels, recipe.data.height, recipe.data.width)
    if not processes.first:
        # The first one does it; the others find it done.
        processes.wait()
    data = data_step(recipe.data, parts, steps)
    if processes.first:
        processes.wait()
    places: dict[str, Path] = {}
    generated: Path | None = None
    mix: dict[str, Any] | None = None
    networks: dict[str, Cnn] = {}
    own = MemberSpec(name="classifier", network=recipe.network, train=recipe.train, seed=0)
    for member in (own, *recipe.members):
        title = "train" if member is own else f"train {member.name}"
        settings: dict[str, Any] = {
            "data": digest(data),
            "network": member.network.model_dump(mode="json"),
            "train": member.train.model_dump(mode="json"),
            "seed": recipe.seed + member.seed,
        }
        mixes: dict[float, Path | None] = {0.0: None}
        others: list[Cnn] = []
        if member.apart:
            # Written by the first process, read by all.
            processes.wait()
            settings["apart"] = member.apart
            settings["from"] = {name: digest(place) for name, place in places.items()}
            others = [
                _trained(one, places[one.name], shape, classes)
                for one in (own, *recipe.members)
                if one.name in places
            ]
        if member is own and recipe.augment is not None:
            try:
                generated = generated_images(
                    recipe.augment, parts, digest(data), recipe.seed, steps,
                    processes=processes, device=device, progress=progress,
                )  # fmt: skip
                mixes |= dict.fromkeys(recipe.augment.ratios, generated)
            except NothingLeft as error:
                progress(f"{error}. The network is trained on real images alone")
        tried: dict[float, Path] = {}
        for ratio, source in mixes.items():
            mixed = settings
            if source is not None and recipe.augment is not None:
                mixed = settings | {
                    "generated": digest(source),
                    "ratio": ratio,
                    "smoothing": recipe.augment.smoothing,
                }
                progress(f"with {ratio:.0%} generated images")
            tried[ratio] = steps.run(
                title.replace(" ", "-"),
                mixed,
                partial(
                    _train, member, recipe.seed + member.seed, parts, shape, others,
                    None if source is None or recipe.augment is None else load_generated(
                        source, ratio, recipe.augment.smoothing, classes
                    ),
                    device=device, processes=processes, progress=progress,
                ),
            )  # fmt: skip
        places[member.name] = tried[0.0]
        if generated is not None and member is own:
            # Written by the first process, read by all.
            processes.wait()
            values = {ratio: _reached(place, member) for ratio, place in tried.items()}
            chosen = best_ratio(values, len(parts["selection"]))
            places[member.name] = tried[chosen]
            mix = _mix_report(values, chosen, generated)
        if not processes.first:
            continue
        networks[member.name] = _trained(member, places[member.name], shape, classes)
    processes.leave()
    if not processes.first:
        return None
    network, trained = networks.pop(own.name), places[own.name]
    draft = steps.run(
        "guard",
        {
            "networks": {name: digest(place) for name, place in places.items()},
            "data": digest(data),
            "stages": [stage.model_dump(mode="json") for stage in recipe.stages],
            "guard": recipe.guard.model_dump(mode="json"),
            "smoothing": recipe.smoothing.model_dump(mode="json") if recipe.smoothing else None,
            "name": recipe.name,
            "version": recipe.version,
            "seed": recipe.seed,
            "started": started,
        },
        lambda folder: _draft(
            recipe, network, networks, parts, shape, started, registry, folder, progress
        ),
    )
    figures = steps.run(
        "evaluate",
        {"guard": digest(draft), "evaluate": recipe.evaluate.model_dump(mode="json")},
        lambda folder: _evaluate(recipe, draft, parts, folder, jobs, progress),
    )
    result = json.loads((figures / "evaluation.json").read_text(encoding="utf-8"))
    summary = _summary(
        recipe, result, parts, json.loads((trained / "log.json").read_text(encoding="utf-8"))
    )
    summary["data"] = inventory.to_json()
    if mix is not None:
        summary["augment"] = mix
    try:
        _gate(recipe, summary, figures)
    except GateFailed:
        _put_aside(out)
        raise
    progress("signing the bundle")
    return Run(_sign(recipe, draft, figures, trained, summary, out, signer), summary)


def _put_aside(out: Path) -> None:
    """Move the bundle of an earlier run out of the way: it is not what this one made."""
    bundle, earlier = out / "bundle", out / "bundle-of-an-earlier-run"
    if bundle.exists():
        if earlier.exists():
            shutil.rmtree(earlier)
        bundle.rename(earlier)


def _started(out: Path) -> str:
    """When this run was first started: the date of its bundle, however often it is resumed."""
    path = out / "started.txt"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(datetime.now(UTC).isoformat(timespec="seconds"), encoding="utf-8")
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise TrainingError(f"--out: {out} cannot be written: {error.strerror}") from error


def check(recipe: Recipe, base: Path, registry: Registry) -> tuple[dict[str, Labelled], Inventory]:
    """Read the data, and find whatever a run would refuse after hours of training.

    Args:
        recipe: whose own text was checked when it was loaded.
        base: folder from which its relative paths count.
        registry: plugins.

    Returns:
        The parts, and what they hold.

    Raises:
        FirewallError: the data is not what the recipe says, calibration could not keep what it
            promises, or a stage of the guard could not work.

    """
    parts, inventory = read_parts(recipe.data, base)
    _check_sizes(recipe, parts)
    shape = (recipe.data.channels, recipe.data.height, recipe.data.width)
    classes = len(inventory.labels)
    classifier = make_network(recipe.network, shape, classes, recipe.seed)
    members = {
        one.name: _Logits(make_network(one.network, shape, classes, recipe.seed))
        for one in recipe.members
    }
    assemble(recipe.guard_spec, registry, classifier, members)
    return parts, inventory


def _check_sizes(recipe: Recipe, parts: dict[str, Labelled]) -> None:
    """Whether calibration can promise what the recipe wants, before anything is trained."""
    rate = recipe.guard.false_positive_rate
    have, need = len(parts["calibration"]) // 2, least_sample(rate)
    if have < need:
        raise ConfigError(
            f"guard.false_positive_rate: {rate:g} needs {2 * need} calibration images; the data "
            f"gives {2 * have}: bring more, raise data.calibration, or choose a higher rate"
        )
    if recipe.guard.promise == "class":
        most, need = int(np.bincount(parts["calibration"].y).max()), least_of_class(rate)
        if most // 2 < need:
            raise ConfigError(
                f"guard.promise: 'class' at a rate of {rate:g} needs {2 * need} calibration images "
                f"of a class; the most that one has is {most}: bring more, raise data.calibration, "
                "or promise the rate 'overall'"
            )


def _train(
    member: MemberSpec,
    seed: int,
    parts: dict[str, Labelled],
    shape: tuple[int, int, int],
    others: list[Cnn],
    generated: Generated | None,
    folder: Path,
    *,
    device: str,
    processes: Processes,
    progress: Callable[[str], None],
) -> None:
    schedule = member.train.schedule()
    if others:
        logits = tuple(_Logits(one.to(device)) for one in others)
        schedule = replace(
            schedule,
            phases=tuple(
                replace(phase, objective=Apart(phase.objective, logits, member.apart))
                for phase in schedule.phases
            ),
        )
    network = make_network(member.network, shape, len(parts["train"].labels), seed)
    log = fit_network(
        network,
        images(parts["train"]),
        images(parts["selection"]),
        schedule,
        folder / "state",
        seed=seed,
        device=device,
        processes=processes,
        generated=generated,
        progress=progress,
    )
    if not processes.first:
        return
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(state, folder / "network.safetensors")
    write_json(folder / "log.json", log)


def _reached(place: Path, member: MemberSpec) -> float:
    """The figure of selection data by which a training kept its best epoch."""
    log = json.loads((place / "log.json").read_text(encoding="utf-8"))
    return max(float(epoch[member.train.choose]) for epoch in log)


def _mix_report(values: dict[float, float], chosen: float, generated: Path) -> dict[str, Any]:
    """What generated images were worth, for figures and model card."""
    return {
        "selection": {f"{ratio:g}": value for ratio, value in sorted(values.items())},
        "chosen_ratio": chosen,
        "judged": json.loads((generated / "judge.json").read_text(encoding="utf-8")),
    }


def _trained(member: MemberSpec, folder: Path, shape: tuple[int, int, int], classes: int) -> Cnn:
    network = make_network(member.network, shape, classes, 0)
    network.load_state_dict(load_file(folder / "network.safetensors"))
    return network.eval().requires_grad_(False)


class _Logits(nn.Module):
    """A classifier's logits alone, as stages own it."""

    def __init__(self, classifier: Cnn) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, K]."""
        logits: Tensor = self.classifier(x).logits
        return logits


def _draft(
    recipe: Recipe,
    network: Cnn,
    members: dict[str, Cnn],
    parts: dict[str, Labelled],
    shape: tuple[int, int, int],
    started: str,
    registry: Registry,
    folder: Path,
    progress: Callable[[str], None],
) -> None:
    """The whole bundle, signed by a key that nobody has: to be evaluated, not to be served."""
    signer = Signer.generate()
    calibration, train = parts["calibration"], parts["train"]
    half = len(calibration) // 2
    rows = np.random.default_rng(recipe.seed).permutation(len(train))[: recipe.guard.fit]
    held_out = _wire(parts["selection"])
    place = folder / "bundle"
    if place.exists():
        # Left by a try that was killed between writing it and saying so.
        shutil.rmtree(place)
    build(
        place,
        identity=Identity(
            name=recipe.name,
            version=recipe.version,
            architecture=f"{recipe.network.architecture}, width {recipe.network.width}",
            recipe=_recipe_digest(recipe),
            seed=recipe.seed,
            labels=train.labels,
            threat_model=ThreatModel(
                norm=recipe.evaluate.norm,
                radius=recipe.evaluate.radius or recipe.train.radius,
                evaluated=_knowledge(recipe.evaluate.suite),
            ),
            created=started,
            promised_rate=recipe.guard.false_positive_rate,
        ),
        classifier=network,
        guard_spec=recipe.guard_spec,
        input_spec=InputSpec(
            name="input", channels=recipe.data.channels, height=shape[1], width=shape[2]
        ),
        preprocessing=Preprocessing(resize=max(4, min(shape[1:]))),
        data=Data(
            fit=_wire(train.take(rows)),
            held_out=held_out,
            held_out_groups=np.arange(len(held_out)),
            names={part: (f"{len(parts[part])} images",) for part in PARTS},
            fit_labels=train.take(rows).y,
        ),
        calibrate=ByRows(
            part_a=_wire(calibration)[:half],
            part_b=_wire(calibration)[half : 2 * half],
            escalation=recipe.guard.escalation,
            by_class=recipe.guard.promise == "class",
            combination=recipe.guard.combination,
        ),
        members={name: _Logits(one) for name, one in members.items()},
        smoothing=recipe.smoothing,
        signer=signer,
        registry=registry,
        progress=progress,
    )
    (folder / "signer.pub").write_text(signer.public, encoding="utf-8")


def _images_of(one: Labelled) -> npt.NDArray[np.float32]:
    """[N, C, H, W] in [0, 1]."""
    scaled: npt.NDArray[np.float32] = one.x.astype(np.float32) / np.float32(255)
    return scaled


def _wire(one: Labelled) -> Any:
    """[N, H, W, C] pixels."""
    return np.ascontiguousarray(one.x.transpose(0, 2, 3, 1))


def _knowledge(suite: str) -> tuple[Any, ...]:
    by_suite = {
        "quick": ("oblivious", "black-box", "adaptive"),
        "static": ("oblivious",),
        "black-box": ("black-box",),
        "adaptive": ("adaptive",),
        "full": ("oblivious", "black-box", "adaptive"),
    }
    assert by_suite.keys() == set(SUITES)
    return by_suite[suite]


def _recipe_digest(recipe: Recipe) -> str:
    return hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()


def _evaluate(
    recipe: Recipe,
    draft: Path,
    parts: dict[str, Labelled],
    folder: Path,
    jobs: int,
    progress: Callable[[str], None],
) -> None:
    bundle = open_bundle(draft / "bundle", {(draft / "signer.pub").read_text(encoding="utf-8")})
    settings = recipe.evaluate
    request = Request(
        settings.suite,
        settings.norm,
        settings.radius or recipe.train.radius,
        seed=recipe.seed,
        rate=recipe.guard.false_positive_rate,
        steps=settings.steps,
        queries=settings.queries,
    )
    target, test = BundleTarget(bundle), parts["test"]
    surrogates: list[tuple[str, nn.Module]] = []
    if settings.suite in ("static", "full"):
        # An attacker's own data: images that the network was not trained on.
        progress("training the attacker's surrogates")
        own = parts["calibration"].take(np.arange(len(parts["calibration"]))[:_SURROGATE_ROWS])
        surrogates = trained_surrogates(target, request, _images_of(own), own.y)
    rows = slice(settings.rows)
    done = evaluate(
        target,
        _images_of(test)[rows],
        test.y[rows],
        request,
        folder / "state",
        surrogates=tuple(surrogates),
        provenance=provenance(),
        jobs=jobs,
        progress=progress,
    )
    write_report(done, folder / "report.html")
    write_json(folder / "evaluation.json", done.result)


def _summary(
    recipe: Recipe, result: dict[str, Any], parts: dict[str, Labelled], log: list[Any]
) -> dict[str, Any]:
    """The figures of a run: of the classifier alone, of the whole firewall, and how it was made."""
    worst, clean = result["worst_case"], result["clean"]
    return {
        "recipe": json.loads(recipe.model_dump_json()),
        "digest": _recipe_digest(recipe),
        "environment": result["environment"],
        "rows": {part: len(parts[part]) for part in PARTS},
        "training": log,
        "guard_model": {
            "clean_accuracy": clean["accuracy"],
            "robust_accuracy": worst["bare_robust_accuracy"],
            "interval": worst["bare_interval"],
            "fooled_by": {one["name"]: one["fooled_bare_rate"] for one in result["attacks"]},
        },
        "firewall": {
            "clean_accepted_and_correct": clean["accepted_and_correct"],
            "false_positive_rate": clean["false_positive_rate"],
            "robust_accuracy": worst["robust_accuracy"],
            "interval": worst["interval"],
        },
        "certified": result.get("certified"),
        "evaluation": result,
    }


def _gate(recipe: Recipe, summary: dict[str, Any], figures: Path) -> None:
    """Refuse what does not reach the recipe's own limits, all of them named."""
    gate, firewall = recipe.gate, summary["firewall"]
    short = [
        f"{name} {value:.1%} is {'over' if over else 'under'} {limit:.1%}"
        for name, value, limit, over in (
            (
                "clean_accuracy",
                summary["guard_model"]["clean_accuracy"]["value"],
                gate.clean_accuracy,
                False,
            ),
            ("robust_accuracy", firewall["robust_accuracy"], gate.robust_accuracy, False),
            (
                "false_positive_rate",
                firewall["false_positive_rate"]["value"],
                gate.false_positive_rate,
                True,
            ),
        )
        if (value > limit if over else value < limit)
    ]
    sure = summary["certified"]
    if sure and (
        sure["violations"]
        or sure["paranoia_4"]["robust_accuracy"] != sure["paranoia_4"]["accepted_and_correct"]
    ):
        short.insert(0, "a certificate was broken by an attack")
    if short:
        raise GateFailed(
            f"gate: {'; '.join(short)}; nothing was signed, the figures are in "
            f"{figures / 'evaluation.json'}"
        )


def _sign(
    recipe: Recipe,
    draft: Path,
    figures: Path,
    trained: Path,
    summary: dict[str, Any],
    out: Path,
    signer: Signer,
) -> Path:
    """The bundle with its figures in it, and beside it what people look at."""
    opened = open_bundle(draft / "bundle", {(draft / "signer.pub").read_text(encoding="utf-8")})
    files = dict(opened.files)
    built = json.loads(files["evaluation.json"])
    # When it was measured is no part of what it is: the same run gives the same bits.
    result = {key: value for key, value in summary["evaluation"].items() if key != "environment"}
    for attack in result["attacks"]:
        del attack["seconds"]
    built["suite"] = result
    built["data"] = summary["data"]
    if "augment" in summary:
        built["augment"] = summary["augment"]
    files["evaluation.json"] = json.dumps(built, indent=1, allow_nan=False).encode()
    calibration = Calibration.from_json(files["calibration.json"])
    files["MODEL_CARD.md"] = render(opened.manifest, calibration, built).encode()
    target = out / "bundle"
    if target.exists():
        shutil.rmtree(target)
    write_bundle(target, opened.manifest, files, signer)
    write_json(out / "evaluation.json", summary)
    shutil.copyfile(figures / "report.html", out / "report.html")
    shutil.copyfile(trained / "state" / "log.jsonl", out / "log.jsonl")
    return target
