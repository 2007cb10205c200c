"""A guard for a classifier that somebody already has: fit, calibrate, attack, sign; resumable."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from firewall import __version__
from firewall.attack.oracle import Oracle
from firewall.attack.surrogate import SurrogateTraining, labelled_by
from firewall.bundle.manifest import ClassifierSpec, Manifest, Provenance, ThreatModel
from firewall.bundle.signing import Signer
from firewall.bundle.spec import GuardSpec, InputSpec
from firewall.bundle.store import Bundle, open_bundle, write_bundle
from firewall.core.shipped import Shipped
from firewall.errors import CalibrationError, ConfigError, SampleTooSmall
from firewall.evaluation.measure import false_positives
from firewall.evaluation.onnx_target import OnnxTarget
from firewall.evaluation.provenance import provenance
from firewall.evaluation.report import write_report
from firewall.evaluation.request import Request
from firewall.evaluation.run import evaluate
from firewall.evaluation.target import BundleTarget
from firewall.guard.assemble import assemble
from firewall.guard.classifier import Classifier, LogitsOnly
from firewall.guard.compile import compile_split
from firewall.guard.graph import Guard
from firewall.guard.parity import check_row_independence, check_split
from firewall.guard.wire_input import WireInput
from firewall.lift.classifier import LiftedClassifier
from firewall.screening.calibration import Calibration, least_sample
from firewall.screening.classifier import SeparateClassifier, check_answers
from firewall.screening.load import open_graphs
from firewall.screening.local_model import MODEL, LocalModel
from firewall.screening.preprocess import images_to_wire, to_wire
from firewall.screening.scores import Scores
from firewall.screening.selftest import SelfTest
from firewall.screening.split import SplitGuard
from firewall.sources.describe import options_of
from firewall.sources.lifting import check_lift
from firewall.sources.options import SourceOptions
from firewall.sources.plan import Plan, Progress
from firewall.sources.source import Embedded, embed
from firewall.stages import RAW, Evidence
from firewall.stages.registry import Registry
from firewall.train import budget, default_recipe
from firewall.train.build import libraries, measure_rows, promisable
from firewall.train.card import render
from firewall.train.combine import FEWEST, with_learnt_weights
from firewall.train.examples import gradients_each, handled_half, make_examples
from firewall.train.fit_stages import Look, Material, fit_around, fit_stages
from firewall.train.run_lock import locked
from firewall.train.source_stages import ESCALATION, default_stages
from firewall.train.steps import Steps, write_json

#: Rates of false positives that are tried where none was asked for, the best first.
RATES = (0.01, 0.02, 0.05, 0.1)
#: Shares of the images by which stages are fitted, on which the promise is measured and the guard
#: attacked, and by which p-values of single statistics are made; the rest calibrates the whole.
_FIT, _HELD, _PART_A = 0.2, 0.2, 0.25
#: Parts of the minutes that teaching and attacking take.
_TEACHING, _ATTACKING = 0.3, 0.7
#: L-infinity radius of the attackers that a guard is made for.
RADIUS = 4 / 255
_LAW_ROWS = 6
#: Seconds that a query of a served model is taken for, where no gradient is to be timed.
_UNTIMED = 0.02
#: Share of the images to fit by that stages learn from; the combination is fitted on the others.
_TAUGHT = 0.7
#: Images on which an attacker's surrogate is trained.
_SURROGATE_ROWS = 80
_BATCH = 16


@dataclass(frozen=True)
class Settings:
    """How a guard is made.

    Attributes:
        rate: of false positives, which it must be able to promise; None takes the best of `RATES`
            that the images allow.
        minutes: that teaching and attacking may take together.
        radius: L-infinity, of the attackers that it is made for.
        stages: in place of the default ones.
        version: of the bundle.
        seed: of every draw.

    """

    rate: float | None = None
    minutes: float = 6.0
    radius: float = RADIUS
    stages: GuardSpec | None = None
    version: str = "1"
    seed: int = 0


def make_guard(
    out: Path,
    plan: Plan,
    options: SourceOptions,
    settings: Settings,
    signer: Signer,
    registry: Registry,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Fit, compile, calibrate, attack and sign; returns what a summary needs.

    Beside the bundle lie `<out>.report.html`, and `<out>.work` until it is done: the same command
    goes on there.

    Args:
        out: a folder that does not exist yet.
        plan: of `inspect`.
        options: of the owner.
        settings: how.
        signer: whose signature the bundle gets.
        registry: plugins.
        progress: told each step.

    Raises:
        FirewallError: a step failed; what was finished is kept.

    """
    if out.exists():
        raise ConfigError(f"--out: {out} exists; name a new folder")
    parts, rate = split(len(plan.images.pixels), settings)
    work = out.with_name(out.name + ".work")
    maker = _Maker(plan, options, replace(settings, rate=rate), parts, signer, registry, progress)
    with locked(work):
        steps = Steps(work, progress)
        draft = steps.run("draft", maker.inputs(), maker.draft)
        opened = open_bundle(draft / "bundle", {(draft / "signer.pub").read_text(encoding="utf-8")})
        attacked = steps.run(
            "attack", {"draft": opened.digest}, lambda at: maker.attack(opened, at)
        )
        progress("signing")
        result = json.loads((attacked / "evaluation.json").read_text(encoding="utf-8"))
        bundle_digest = _sign(out, opened, result, signer)
        report = out.with_name(out.name + ".report.html")
        shutil.copyfile(attacked / "report.html", report)
    shutil.rmtree(work)
    return {
        "bundle": str(out),
        "digest": bundle_digest,
        "report": str(report),
        "false_positive_rate": rate,
        "images": {name: len(rows) for name, rows in parts.items()},
        "evaluation": result,
    }


def split(count: int, settings: Settings) -> tuple[dict[str, npt.NDArray[np.intp]], float]:
    """Deal images into parts: to fit, for both parts of calibration, and held out.

    Returns:
        Rows by part, and the rate that the parts can promise.

    Raises:
        ConfigError: there are too few images for the rate.

    """
    fit, held = max(4, round(_FIT * count)), max(4, round(_HELD * count))
    part_a = max(4, round(_PART_A * count))
    part_b = count - fit - held - part_a
    rates = RATES if settings.rate is None else (settings.rate,)
    promised = [rate for rate in rates if part_b >= least_sample(rate)]
    if not promised:
        rate = rates[-1]
        wanted = int(np.ceil(least_sample(rate) / (1 - _FIT - _HELD - _PART_A))) + 2
        raise ConfigError(
            f"images: {count} cannot promise a false-positive rate of {rate:g}, which takes "
            f"about {max(wanted, 24)}: bring more"
            + ("" if settings.rate is None else ", or choose a higher --false-positive-rate")
        )
    order = np.random.default_rng(settings.seed).permutation(count)
    ends = np.cumsum([fit, part_a, part_b])
    names = ("fit", "part-a", "part-b", "held-out")
    return dict(zip(names, np.split(order, ends), strict=True)), promised[0]


class _Maker:
    """The steps that take time, with everything that they need."""

    def __init__(
        self,
        plan: Plan,
        options: SourceOptions,
        settings: Settings,
        parts: dict[str, npt.NDArray[np.intp]],
        signer: Signer,
        registry: Registry,
        progress: Progress,
    ) -> None:
        self._plan, self._options, self._settings = plan, options, settings
        self._parts, self._signer, self._registry = parts, signer, registry
        self._progress = progress
        assert settings.rate is not None
        self._rate = settings.rate

    def inputs(self) -> dict[str, Any]:
        """Everything that decides what is made."""
        plan, settings = self._plan, self._settings
        surrogate = self._options.surrogate
        return {
            "source": plan.source.digest,
            "spec": plan.spec.model_dump(mode="json"),
            "scores": plan.checked.scores.spec.model_dump(mode="json"),
            "others": [one.model_dump(mode="json") for one in plan.others],
            "labels": list(plan.labels),
            "name": plan.source.name,
            "images": list(plan.images.digests),
            "preprocessing": plan.preprocessing.model_dump(mode="json"),
            "settings": asdict(replace(settings, stages=None)),
            "stages": None if settings.stages is None else settings.stages.model_dump(mode="json"),
            "surrogate": None
            if surrogate is None
            else hashlib.sha256(surrogate.read_bytes()).hexdigest(),
        }

    def draft(self, folder: Path) -> None:
        """Fit, compile and calibrate: a bundle without figures of attacks."""
        plan, spec, scores = self._plan, self._plan.spec, self._plan.checked.scores
        progress = self._progress
        wire = self._wire()
        embedded: Embedded | None = None
        gradients: Classifier | None = None
        if plan.source.model is not None:
            progress("lifting the classifier, and comparing with onnxruntime")
            embedded = embed(plan.source, spec, plan.others)
            gradients = _lifted(plan, embedded)
            check_lift(gradients, self._local(embedded), spec, scores, wire["held-out"])
        elif self._options.surrogate is not None:
            gradients = read_stand_in(self._options, plan)
        taps = () if embedded is None else embedded.taps
        chosen = plan_stages(self._settings, spec, taps, gradients, wire["fit"])
        guard = assemble(chosen.spec, self._registry, gradients if embedded is not None else None)
        if embedded is not None:
            # Features that no stage reads would be computed for nothing.
            read = {*guard.features_of("cheap"), *guard.features_of("expensive")}
            embedded = embed(plan.source, spec, plan.others, read)
        progress(f"fitting the stages{chosen.effort}")
        # Without gradients no combination is fitted.
        taught = chosen.rows if gradients is None else math.ceil(_TAUGHT * chosen.rows)
        material = Material(
            wire["fit"][:taught], spec, None, self._settings.radius, budget.LESSON_STEPS,
            math.ceil(_TAUGHT * chosen.examples),
        )  # fmt: skip
        classifier = self._classifier(embedded)
        try:
            if embedded is not None:
                fitted = fit_stages(guard, material, self._settings.seed)
            else:
                look = answered_evidence(guard, classifier, scores)
                fitted = fit_around(guard, material, self._settings.seed, look, gradients)
            progress("compiling to ONNX")
            features = {} if embedded is None else embedded.features
            graphs = compile_split(guard, spec, scores.classes, features)
            served = SplitGuard(graphs, classifier, spec, scores)
            progress("comparing ONNX with torch")
            check_split(guard, served, spec, scores, features)
            few = wire["held-out"][:_LAW_ROWS]
            check_row_independence(guard, lambda rows: served.both(few[rows]), len(few))
            calibration = self._calibration(served, guard, wire)
            if gradients is not None:
                progress("fitting the combination on forgeries of other images")
                apart = wire["fit"][taught : chosen.rows]
                calibration = self._combined(calibration, served, gradients, apart, chosen)
            else:
                calibration = with_shipped_weights(calibration, chosen.spec)
            files = self._files(
                served, guard, calibration, graphs, embedded, fitted, chosen.spec, wire["held-out"]
            )
        finally:
            classifier.close()
        manifest = files.pop("manifest")
        shutil.rmtree(folder / "bundle", ignore_errors=True)
        write_bundle(folder / "bundle", manifest, files, self._signer)
        (folder / "signer.pub").write_text(self._signer.public, encoding="utf-8")

    def attack(self, bundle: Bundle, folder: Path) -> None:
        """Attack the draft with the quick suite."""
        plan, spec = self._plan, self._plan.spec
        rows = self._parts["held-out"]
        pixels = plan.images.pixels[rows]
        wire = to_wire(pixels, spec)
        stand_in: Classifier | None = None
        if self._options.surrogate is not None:
            stand_in = read_stand_in(self._options, plan)
        upstream = (lambda: plan.source.open(self._names)) if plan.kind == "remote" else None
        target = BundleTarget(bundle, upstream, stand_in if plan.kind == "remote" else None)
        surrogates = self._surrogates(target, stand_in)
        gradients = stand_in
        if plan.kind == "file":
            gradients = LiftedClassifier(
                bundle.files[MODEL], plan.source.output.name, plan.checked.scores, spec,
                bundle.manifest.classifier.taps,
            )  # fmt: skip
        x = WireInput(spec)(torch.from_numpy(wire))
        effort = self._effort(folder, gradients, x)
        truth = plan.truth
        y = (
            truth[rows][: effort.rows]
            if truth is not None
            else _said(bundle, target, wire[: effort.rows])
        )
        request = Request(
            "quick", "linf", self._settings.radius, self._settings.seed, self._rate,
            effort.steps, effort.queries,
        )  # fmt: skip
        done = evaluate(
            target, x[: effort.rows].numpy(), y, request, folder / _state_name(surrogates),
            surrogates=surrogates, provenance=provenance(), progress=self._progress,
        )  # fmt: skip
        write_report(done, folder / "report.html")
        text = json.dumps(done.result, indent=1, allow_nan=False)
        (folder / "evaluation.json").write_text(text + "\n", encoding="utf-8")

    def _effort(self, folder: Path, gradients: Classifier | None, x: torch.Tensor) -> budget.Effort:
        """The effort of the suite; of an earlier, interrupted try, where there was one."""
        path = folder / "effort.json"
        if path.exists():
            return budget.Effort(**json.loads(path.read_text(encoding="utf-8")))
        seconds = 60 * self._settings.minutes * _ATTACKING
        gradient = _UNTIMED if gradients is None else budget.gradient_seconds(gradients, x)
        effort = budget.effort_for(seconds, gradient, len(x))
        write_json(path, asdict(effort))
        return effort

    def _surrogates(
        self, target: BundleTarget, stand_in: Classifier | None
    ) -> tuple[tuple[str, torch.nn.Module], ...]:
        """Networks of an attacker's own: the one that is given, or one that the guard teaches."""
        if stand_in is not None:
            assert self._options.surrogate is not None
            return ((self._options.surrogate.stem, LogitsOnly(stand_in)),)
        self._progress("training an attacker's surrogate on what the guard answers")
        spec = self._plan.spec
        rows = self._parts["fit"][:_SURROGATE_ROWS]
        x = WireInput(spec)(torch.from_numpy(to_wire(self._plan.images.pixels[rows], spec)))
        asked = Oracle(target.victim(self._rate).replies, len(x), 1)
        images, said = labelled_by(asked, x)
        if not len(images):
            return ()
        train = SurrogateTraining(epochs=8, batch=16)
        network = train(images, said, target.classes, seed=self._settings.seed)
        return ((f"{len(x)} queries", network),)

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self._plan.others)

    def _local(self, embedded: Embedded) -> LocalModel:
        return LocalModel(
            embedded.graph,
            scores=self._plan.source.output.name,
            taps=embedded.taps,
            others=self._names,
        )

    def _classifier(self, embedded: Embedded | None) -> SeparateClassifier:
        return self._plan.source.open(self._names) if embedded is None else self._local(embedded)

    def _wire(self) -> dict[str, npt.NDArray[Any]]:
        """Rows by part. Half of what calibrates is handled as photographs are on their way."""
        pixels = {name: self._plan.images.pixels[rows] for name, rows in self._parts.items()}
        for number, name in enumerate(("part-a", "part-b")):
            pixels[name] = handled_half(pixels[name], self._settings.seed + number)
        return {name: to_wire(part, self._plan.spec) for name, part in pixels.items()}

    def _calibration(
        self, served: SplitGuard, guard: Guard, wire: dict[str, npt.NDArray[Any]]
    ) -> Calibration:
        self._progress(f"calibrating on {len(wire['part-a'])} + {len(wire['part-b'])} images")
        return Calibration(
            detectors=(*guard.tier("cheap"), *guard.tier("expensive")),
            cheap=len(guard.tier("cheap")),
            part_a=served.both(wire["part-a"], _BATCH)[1].astype(np.float64),
            part_b=served.both(wire["part-b"], _BATCH)[1].astype(np.float64),
            escalation=max(ESCALATION[self._plan.kind], 2 * self._rate),
        )

    def _combined(
        self,
        calibration: Calibration,
        served: SplitGuard,
        gradients: Classifier,
        rows: npt.NDArray[Any],
        chosen: _Stages,
    ) -> Calibration:
        """Fit the combination on forgeries of images that no stage has learnt from."""
        seed, spec = self._settings.seed + 1, self._plan.spec
        x = WireInput(spec)(torch.from_numpy(rows))
        with torch.no_grad():
            label = torch.cat([gradients(part).logits.argmax(dim=1) for part in x.split(_BATCH)])
        count = chosen.examples - math.ceil(_TAUGHT * chosen.examples)
        model = LogitsOnly(gradients)
        examples = make_examples(model, x, label, self._settings.radius, count, seed)
        # Only what still is a forgery as it arrives.
        with torch.no_grad():
            clean, sent = (
                torch.cat([model(part).argmax(dim=1) for part in torch.split(images, _BATCH)])
                for images in (examples.benign[1::2], examples.forged)
            )
        fools = clean != sent
        if fools.sum() >= FEWEST:
            examples = replace(examples, forged=examples.forged[fools])
        benign, forged = (
            served.both(images_to_wire(part.numpy(), spec), _BATCH)[1].astype(np.float64)
            for part in (examples.benign, examples.forged)
        )
        return with_learnt_weights(
            calibration, np.concatenate([calibration.part_a, benign]), forged
        )

    def _files(
        self,
        served: SplitGuard,
        guard: Guard,
        calibration: Calibration,
        graphs: dict[str, bytes],
        embedded: Embedded | None,
        fitted: dict[str, dict[str, float]],
        guard_spec: GuardSpec,
        held_out: npt.NDArray[Any],
    ) -> dict[str, Any]:
        """Files of the bundle, and its manifest under that name."""
        plan, settings, parts = self._plan, self._settings, self._parts
        escalation = escalation_of(calibration)
        calibration = promising(replace(calibration, escalation=escalation), self._rate)
        self._progress(f"measuring false positives on {len(parts['held-out'])} held-out images")
        measured = measure_rows(
            served, calibration, held_out, bool(guard_spec.of("ensemble")), _BATCH
        )
        evaluation = {
            "held_out": false_positives(
                measured.p_values,
                np.arange(len(measured.p_values)),
                promisable({self._rate, 0.05}, len(parts["part-b"])),
            ),
            "reference": None,
            "suite": None,
        }
        scores = plan.checked.scores
        manifest = Manifest.model_validate(
            {
                "name": plan.source.name,
                "version": settings.version,
                "classifier": ClassifierSpec.model_validate(
                    {
                        "kind": plan.kind,
                        "architecture": plan.source.architecture[:256],
                        "classes": scores.classes,
                        "taps": () if embedded is None else embedded.taps,
                    }
                ),
                "input": plan.spec,
                "output": plan.source.output.name,
                "scores": scores.spec,
                "other_outputs": plan.others,
                "preprocessing": plan.preprocessing,
                "guard": guard_spec,
                "threat_model": ThreatModel(norm="linf", radius=settings.radius, evaluated=()),
                "promised_rate": self._rate,
                "provenance": Provenance(
                    created=datetime.now(UTC).isoformat(timespec="seconds"),
                    producer=f"robustness-firewall {__version__}",
                    recipe=_digest_of(self.inputs()),
                    seed=settings.seed,
                    libraries=libraries(),
                    data={name: (f"{len(rows)} images",) for name, rows in parts.items()},
                    fitted=fitted,
                ),
                "files": {},
            }
        )
        more = {} if embedded is None else {MODEL: embedded.graph}
        return {
            "manifest": manifest,
            **graphs,
            **more,
            "calibration.json": calibration.to_json(),
            "labels.json": json.dumps(list(plan.labels), allow_nan=False).encode(),
            "selftest.npz": SelfTest.record(served, held_out[:2]).to_npz(),
            "evaluation.json": json.dumps(evaluation, indent=1, allow_nan=False).encode(),
            "MODEL_CARD.md": render(manifest, calibration, evaluation).encode(),
        }


def escalation_of(calibration: Calibration) -> float:
    """The escalation by which the share that a calibration names really goes on to the views.

    A cascade doubts the rows of part A against all of part A, themselves included, and so doubts
    them less than rows that it has not seen. Here each is doubted against the others.
    """
    part_a, share = calibration.part_a, calibration.escalation
    count = len(part_a)
    if not calibration.cheap or count < 3:
        return 1.0
    whole = replace(calibration, escalation=1.0)
    rate = 1 / (calibration.units + 1)
    own = whole.cascade(rate).doubt(part_a[:, : calibration.cheap])
    others = [
        replace(whole, part_a=np.delete(part_a, row, axis=0))
        .cascade(rate)
        .doubt(part_a[row : row + 1, : calibration.cheap])[0]
        for row in range(count)
    ]
    threshold = np.quantile(others, 1.0 - share, method="higher")
    return float(np.clip((own >= threshold).mean(), 1 / count, 1.0))


def with_shipped_weights(calibration: Calibration, stages: GuardSpec) -> Calibration:
    """The shipped combination of pixels and view, where a guard has these stages and no other."""
    default = default_recipe.GUARD.of("detector")
    wanted = [(one.plugin, one.config) for one in default if one.plugin != "core-features"]
    named = {one.name: (one.plugin, one.config) for one in stages.of("detector")}
    if [named[name] for name in calibration.detectors] != wanted:
        return calibration
    return replace(calibration, combination="learnt", weights=Shipped.read(False).elsewhere)


def promising(calibration: Calibration, rate: float) -> Calibration:
    """Raise the escalation, as far as it takes, until the rate can be promised."""
    while calibration.escalation < 1.0:
        try:
            calibration.cascade(rate)
        except SampleTooSmall:
            raise
        except CalibrationError:
            escalation = min(1.0, 1.5 * calibration.escalation)
            calibration = replace(calibration, escalation=escalation)
        else:
            break
    return calibration


@dataclass(frozen=True)
class _Stages:
    spec: GuardSpec
    rows: int
    #: Forgeries to make.
    examples: int = 0
    #: What fitting takes, for people.
    effort: str = ""


def plan_stages(
    settings: Settings,
    spec: InputSpec,
    taps: tuple[str, ...],
    gradients: Classifier | None,
    wire: npt.NDArray[Any],
) -> _Stages:
    """Choose the stages and how many images they learn from, within the minutes that there are."""
    if gradients is None:
        return _Stages(settings.stages or default_stages(taps, None, spec), len(wire))
    x = WireInput(spec)(torch.from_numpy(wire[:8]))
    gradient = budget.gradient_seconds(gradients, x)
    teaching = budget.teaching_for(60 * settings.minutes * _TEACHING, gradient, len(wire))
    chosen = settings.stages or default_stages(taps, teaching, spec)
    about = teaching.examples * gradients_each() * gradient
    effort = f" on {teaching.examples} forgeries of {teaching.rows} images, about {about:.0f} s"
    return _Stages(chosen, teaching.rows, teaching.examples, effort)


def answered_evidence(guard: Guard, classifier: SeparateClassifier, scores: Scores) -> Look:
    """Gather evidence by asking a classifier, as a server does."""

    def look(material: Material, with_views: bool) -> Evidence:
        images = WireInput(material.spec)
        raw: list[torch.Tensor] = []
        views: dict[str, list[torch.Tensor]] = {}
        logits: dict[str, list[torch.Tensor]] = {}

        def ask(name: str, wire: npt.NDArray[Any]) -> None:
            answers = classifier.infer(wire, None, scores_only=True)
            check_answers(answers, len(wire), scores)
            logits.setdefault(name, []).append(torch.tensor(scores.logits(answers.scores)))

        with torch.no_grad():
            for start in range(0, len(material.wire), _BATCH):
                part = np.ascontiguousarray(material.wire[start : start + _BATCH])
                x = images(torch.from_numpy(part))
                raw.append(x)
                ask(RAW, part)
                for name, view in (guard.views(x) if with_views else {}).items():
                    views.setdefault(name, []).append(view)
                    ask(name, images_to_wire(view.numpy(), material.spec))
        return Evidence(
            raw=torch.cat(raw),
            views={name: torch.cat(parts) for name, parts in views.items()},
            logits={name: torch.cat(parts) for name, parts in logits.items()},
        )

    return look


def read_stand_in(options: SourceOptions, plan: Plan) -> LiftedClassifier:
    """Open a surrogate: it takes what the classifier takes, and knows the same classes.

    Raises:
        ConfigError: it does not.

    """
    path, spec = options.surrogate, plan.spec
    assert path is not None
    shape = (spec.channels, spec.height, spec.width)
    images = plan.images.pixels[:16].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    found = OnnxTarget.read(path, shape, options_of(spec), torch.from_numpy(images))
    if found.classes != len(plan.labels):
        raise ConfigError(
            f"--surrogate: {path} knows {found.classes} classes; the classifier {len(plan.labels)}"
        )
    return found.classifier()


def _state_name(surrogates: tuple[tuple[str, torch.nn.Module], ...]) -> str:
    """Folder of an evaluation's shards: another surrogate is another evaluation."""
    total = hashlib.sha256()
    for _, network in surrogates:
        for value in network.state_dict().values():
            total.update(value.numpy().tobytes())
    return f"state-{total.hexdigest()[:12]}"


def _lifted(plan: Plan, embedded: Embedded) -> LiftedClassifier:
    return LiftedClassifier(
        embedded.graph,
        plan.source.output.name,
        plan.checked.scores,
        plan.spec,
        embedded.taps,
    )


def _said(bundle: Bundle, target: BundleTarget, wire: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """What the classifier says of clean images, where nobody knows better."""
    upstream = None if target.upstream is None else target.upstream()
    try:
        logits = open_graphs(bundle, classifier=upstream).cheap(wire).logits
    finally:
        if upstream is not None:
            upstream.close()
    said: npt.NDArray[np.int64] = logits.argmax(axis=1).astype(np.int64)
    return said


def _sign(out: Path, draft: Bundle, result: dict[str, Any], signer: Signer) -> str:
    """Write the bundle with the figures of its attacks in it."""
    files = dict(draft.files)
    built = json.loads(files["evaluation.json"])
    suite = {key: value for key, value in result.items() if key != "environment"}
    for attack in suite["attacks"]:
        attack.pop("seconds", None)
    built["suite"] = suite
    kinds = {
        "white-box": "oblivious", "oblivious": "oblivious", "transfer": "transfer",
        "black-box": "black-box", "adaptive": "adaptive",
    }  # fmt: skip
    evaluated = sorted({kinds[attack["knowledge"]] for attack in suite["attacks"]})
    manifest = draft.manifest.model_copy(
        update={
            "threat_model": draft.manifest.threat_model.model_copy(
                update={"evaluated": tuple(evaluated)}
            )
        }
    )
    calibration = Calibration.from_json(files["calibration.json"])
    files["evaluation.json"] = json.dumps(built, indent=1, allow_nan=False).encode()
    files["MODEL_CARD.md"] = render(manifest, calibration, built).encode()
    return write_bundle(out, manifest, files, signer)


def _digest_of(body: dict[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
