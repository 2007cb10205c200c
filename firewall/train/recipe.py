"""A recipe: everything that decides a bundle, as one TOML file, checked before any compute.

All mistakes of a recipe are reported together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from firewall.attack.suite import SUITES
from firewall.bundle.spec import NAME_PATTERN, GuardSpec, Spec, StageSpec
from firewall.documents import parse_toml
from firewall.errors import ConfigError, FirewallError
from firewall.generate.spec import AugmentSpec
from firewall.screening.calibration import Untaught
from firewall.stages import Adopter
from firewall.stages.registry import Registry
from firewall.train.fit_network import Phase, Schedule
from firewall.train.networks import NetworkSpec
from firewall.train.objectives import (
    AdversarialTraining,
    GaussianNoise,
    Inner,
    IntervalBound,
    LogitPairing,
    Mart,
    Objective,
    SingleStep,
    Standard,
    Trades,
)
from firewall.train.smoothing_table import SmoothingSpec
from firewall.train.sources import SourceSpec
from firewall.validation import problems as described


class PhaseSpec(Spec):
    """`[[train.phases]]`: some epochs with one objective."""

    objective: Literal[
        "standard",
        "fgsm",
        "n-fgsm",
        "pgd",
        "trades",
        "mart",
        "logit-pairing",
        "interval",
        "noise",
    ]
    epochs: int = Field(ge=1, le=10_000)
    #: Of the inner attack of pgd, trades, mart, logit-pairing, and of interval (0 is none there).
    steps: int = Field(default=7, ge=0, le=1000)
    #: Length of each of them, in radii.
    step: float = Field(default=0.3, gt=0, le=4)
    #: trades: beta. mart, logit-pairing: of the second term. pgd: of the loss on clean images.
    #: interval: share of the bounds' loss, the rest being the attack's.
    weight: float | None = Field(default=None, ge=0)
    #: interval: whether bounds begin as CROWN-IBP's; dearer, and only while the radius grows.
    crown: bool = False
    #: noise: standard deviation of the Gaussian noise in which images are seen.
    sigma: float = Field(default=0.25, gt=0, le=4)
    #: Share of the phase in which the radius grows from nothing to what it is.
    ramp: float = Field(default=0.0, ge=0, le=1)
    #: standard: label smoothing.
    smoothing: float = Field(default=0.0, ge=0, lt=1)

    #: Of the attack and the bounds, in [train] radii.
    reach: float = Field(default=1.0, gt=0, le=4)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.steps < 1 and self.objective != "interval":
            raise ValueError(f"steps 0; {self.objective!r} needs at least one")
        if self.objective == "interval" and not 0 < (self.weight or 1.0) <= 1:
            raise ValueError(f"weight {self.weight:g}; 'interval' takes a share in (0, 1]")
        return self

    def objective_at(self, radius: float) -> Objective:
        """The objective for a radius."""
        radius *= self.reach
        inner = Inner(radius, self.steps, self.step)
        weight = self.weight
        made: dict[str, Objective] = {
            "standard": Standard(self.smoothing),
            "fgsm": SingleStep(radius, noise=1.0, step=1.25, clipped=True),
            "n-fgsm": SingleStep(radius),
            "pgd": AdversarialTraining(inner, 0.0 if weight is None else weight),
            "trades": Trades(inner, 6.0 if weight is None else weight),
            "mart": Mart(inner, 5.0 if weight is None else weight),
            "logit-pairing": LogitPairing(inner, 0.5 if weight is None else weight),
            "noise": GaussianNoise(self.sigma),
            "interval": IntervalBound(
                radius, weight or 1.0, inner if self.steps else None, self.crown
            ),
        }
        return made[self.objective]


class TrainSpec(Spec):
    """`[train]`."""

    radius: float = Field(gt=0, lt=1)
    phases: tuple[PhaseSpec, ...] = Field(min_length=1, max_length=16)
    batch: int = Field(default=128, ge=1, le=65_536)
    rate: float = Field(default=2e-3, gt=0, le=10)
    decay: float = Field(default=5e-4, ge=0, lt=1)
    average: float = Field(default=0.995, ge=0, lt=1)
    gamma: float = Field(default=0.0, ge=0, lt=1)
    shift: int = Field(default=0, ge=0, le=64)
    mirror: bool = False
    bfloat16: bool = False
    passes: int = Field(default=1, ge=1, le=1000)
    choose: Literal["attacked", "certified"] = "attacked"

    def schedule(self) -> Schedule:
        """As the training loop takes it."""
        settings = self.model_dump(exclude={"phases"})
        phases = tuple(
            Phase(phase.objective_at(self.radius), phase.epochs, phase.ramp)
            for phase in self.phases
        )
        return Schedule(phases=phases, **settings)


class MemberSpec(Spec):
    """`[[members]]`: a network beside the classifier, for stages that own some."""

    name: str = Field(pattern=NAME_PATTERN)
    network: NetworkSpec = NetworkSpec()
    train: TrainSpec
    #: Added to the recipe's: members of one ensemble differ by it.
    seed: int = Field(default=1, ge=0, lt=2**20)
    #: Weight of a penalty on input gradients that point where those of the networks before it do,
    #: the classifier and earlier members: what moves one of them then leaves the others.
    apart: float = Field(default=0.0, ge=0, le=100)


class GuardSettings(Spec):
    """`[guard]`."""

    #: Share of clean rows that the cheap tier hands on.
    escalation: float = Field(default=0.15, gt=0, le=1)
    #: At which it is evaluated, and which calibration must be able to promise.
    false_positive_rate: float = Field(default=0.01, gt=0, lt=0.5)
    #: To whom: all clean images together, or those of each class that the classifier names.
    promise: Literal["overall", "class"] = "overall"
    #: Of the detectors' p-values: `fisher` adds up many that each see a little, `harmonic` hears
    #: one that sees all of it.
    combination: Untaught = "fisher"
    #: Training images from which stages learn.
    fit: int = Field(default=2000, ge=1)


class EvaluateSpec(Spec):
    """`[evaluate]`."""

    suite: str = "full"
    norm: Literal["linf", "l2"] = "linf"
    #: [train] radius when 0.
    radius: float = Field(default=0.0, ge=0)
    rows: int = Field(default=1000, ge=1)
    steps: int = Field(default=50, ge=1)
    queries: int = Field(default=500, ge=1)

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.suite not in SUITES:
            raise ValueError(f"suite {self.suite!r}; expected one of {', '.join(SUITES)}")
        return self


class GateSpec(Spec):
    """`[gate]`: what a bundle must reach to be signed."""

    #: Of the classifier, on clean test images.
    clean_accuracy: float = Field(default=0.0, ge=0, le=1)
    #: Of the whole firewall, worst case over the suite.
    robust_accuracy: float = Field(default=0.0, ge=0, le=1)
    #: Measured on clean test images, at most.
    false_positive_rate: float = Field(default=1.0, ge=0, le=1)


class Recipe(Spec):
    """A whole offline run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    version: str = Field(default="1", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    seed: int = Field(default=0, ge=0, lt=2**31)
    data: SourceSpec
    network: NetworkSpec = NetworkSpec()
    train: TrainSpec
    members: tuple[MemberSpec, ...] = Field(default=(), max_length=32)
    stages: tuple[StageSpec, ...] = Field(min_length=1)
    guard: GuardSettings = GuardSettings()
    smoothing: SmoothingSpec | None = None
    #: Generated images in the classifier's training.
    augment: AugmentSpec | None = None
    evaluate: EvaluateSpec = EvaluateSpec()
    gate: GateSpec = GateSpec()

    @model_validator(mode="after")
    def _members_differ(self) -> Self:
        names = [member.name for member in self.members]
        if "classifier" in names:
            raise ValueError("the name 'classifier' belongs to [network]; choose another")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two members are named {name!r}")
        return self

    @model_validator(mode="after")
    def _labels_stay_labels(self) -> Self:
        if self.augment is None or not self.augment.smoothing:
            return self
        hard = {"mart", "interval"} & {phase.objective for phase in self.train.phases}
        if hard:
            raise ValueError(
                f"augment.smoothing {self.augment.smoothing:g}; objective {sorted(hard)[0]!r} "
                "takes labels and no probabilities: set it to 0"
            )
        return self

    @property
    def guard_spec(self) -> GuardSpec:
        """The stages, as a guard is assembled from them."""
        return GuardSpec(stages=self.stages)


def load(path: Path, registry: Registry) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the TOML file.
        registry: the plugins that stages may name.

    Raises:
        ConfigError: the file cannot be read, or it is wrong; the error lists all mistakes.

    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"recipe: {path} cannot be read: {error.strerror}") from error
    body = parse_toml(text, f"recipe: {path}")
    problems = _stage_problems(body, registry)
    try:
        recipe = Recipe.model_validate(body)
    except ValidationError as error:
        problems = described(error) + problems
    else:
        try:
            _ = recipe.guard_spec
        except ValidationError as error:
            problems += [f"stages: {line}" for line in described(error)]
    if problems:
        count = "one mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        raise ConfigError(f"recipe {path.name}: {count}: " + "; ".join(problems))
    return recipe


def _stage_problems(body: dict[str, Any], registry: Registry) -> list[str]:
    """List missing plugins, settings that plugins refuse, and missing members."""
    problems: list[str] = []
    stages, members = body.get("stages"), body.get("members")
    known = [
        str(one["name"])
        for one in (members if isinstance(members, list) else [])
        if isinstance(one, dict) and "name" in one
    ]
    smoothing = body.get("smoothing")
    before = smoothing.get("denoiser") if isinstance(smoothing, dict) else None
    if isinstance(before, dict) and "plugin" in before:
        try:
            registry.build("denoiser", str(before["plugin"]), before.get("config", {}))
        except FirewallError as error:
            problems.append(f"smoothing.denoiser: {error}")
    for number, stage in enumerate(stages if isinstance(stages, list) else []):
        if not isinstance(stage, dict) or not {"kind", "plugin"} <= stage.keys():
            continue
        try:
            kind: Any = stage["kind"]
            built = registry.build(kind, str(stage["plugin"]), stage.get("config", {}))
        except KeyError:
            # An unknown kind: validation of the schema reports it.
            continue
        except FirewallError as error:
            problems.append(f"stages[{number}]: {error}")
        else:
            wanted = built.members if isinstance(built, Adopter) else ()
            problems += [
                f"stages[{number}]: needs the member {name!r}; the recipe's are "
                f"{', '.join(known) or 'none'}"
                for name in wanted
                if name not in known
            ]
    return problems
