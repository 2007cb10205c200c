"""One forgery, by the name of an attack: what `firewall attack` runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from firewall.attack.adaptive import Adaptive, Evasion, Way
from firewall.attack.apgd import AutoPGD, TargetedAutoPGD
from firewall.attack.estimate import EstimatedGradient
from firewall.attack.gradient import GradientAttack, Model, pgd
from firewall.attack.hop_skip_jump import HopSkipJump
from firewall.attack.libraries import FoolboxAttack
from firewall.attack.losses import dlr
from firewall.attack.norms import Norm, check_radius, norm_named
from firewall.attack.optimise import TargetedOptimisation
from firewall.attack.oracle import Oracle, Replies
from firewall.attack.physical import Camera, PhysicalAttack, held_share
from firewall.attack.square import Square
from firewall.attack.victim import Victim
from firewall.errors import ConfigError

#: Attacks that need the network itself, answers only, or a network of the attacker's own.
WHITE_BOX = (
    "fgsm", "bim", "pgd", "mi-fgsm", "apgd", "apgd-dlr", "apgd-t", "optimise", "cw", "deepfool",
    "physical", "adaptive",
)  # fmt: skip
BLACK_BOX = ("nes", "spsa", "zoo", "square", "hop-skip-jump")
METHODS = (*WHITE_BOX, *BLACK_BOX, "transfer")
#: Those that can be aimed at a class.
AIMED = ("fgsm", "bim", "pgd", "mi-fgsm", "optimise", "physical", "transfer")


@dataclass(frozen=True)
class Order:
    """What is wanted.

    Attributes:
        method: one of `METHODS`.
        norm: `linf` or `l2`.
        radius: of the ball; `optimise`, `cw` and `deepfool` know none.
        steps: of iterated attacks.
        queries: of black-box attacks.
        target: class to reach; None leaves the class there is.
        weight: of the distance to the image, for `optimise`; 0 is any image.
        ends_at_refusal: whether whoever is refused once is blocked.
        seed: of the attack.

    """

    method: str
    norm: str = "linf"
    radius: float = 8 / 255
    steps: int = 50
    queries: int = 1000
    target: int | None = None
    weight: float = 0.0
    ends_at_refusal: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"--method: {self.method!r}; expected one of {', '.join(METHODS)}")
        norm_named(self.norm)
        check_radius(self.norm, self.radius)
        for flag, value in (("steps", self.steps), ("queries", self.queries)):
            if not value > 0:
                raise ConfigError(f"--{flag}: {value}; expected a positive number")
        if self.target is not None and self.method not in AIMED:
            raise ConfigError(
                f"--to: {self.method!r} cannot be aimed; those that can are {', '.join(AIMED)}"
            )
        if self.method == "optimise" and self.target is None:
            raise ConfigError("--to: missing; 'optimise' moves an image towards a class")
        if self.method == "square" and self.norm != "linf":
            raise ConfigError("--norm: 'square' is for linf; use hop-skip-jump or nes for l2")


@dataclass(frozen=True)
class Said:
    """What the target answers to one image: its top class, how sure, and whether it refused."""

    label: int
    probability: float
    refused: bool

    @classmethod
    def of(cls, replies: Replies) -> Said:
        """The first row of an answer."""
        label = int(replies.scores[0].argmax())
        return cls(label, float(replies.scores[0, label].exp()), bool(replies.refused[0]))


@dataclass(frozen=True)
class Outcome:
    """One forgery.

    Attributes:
        x: [1, C, H, W] in [0, 1].
        before: what the target says of the image.
        after: what it says of the forgery.
        succeeded: answered, and wrongly (as wanted, where there is a target class).
        linf: largest change of a value.
        l2: length of the change.
        queries: asked while forging.
        refusals: of them.
        notes: more, by attack.

    """

    x: Tensor
    before: Said
    after: Said
    succeeded: bool
    linf: float
    l2: float
    queries: int = 0
    refusals: int = 0
    notes: dict[str, float] = field(default_factory=dict)


def forge(
    order: Order,
    x: Tensor,
    replies: Callable[[Tensor], Replies],
    *,
    victim: Victim | None = None,
    surrogate: Model | None = None,
    label: int | None = None,
    start: Tensor | None = None,
) -> Outcome:
    """Forge one image.

    Args:
        order: how.
        x: [1, C, H, W] in [0, 1].
        replies: asks the target; its answers before and after are not counted as queries.
        victim: the target itself; white-box attacks need it.
        surrogate: a network of the attacker's own, for `transfer`.
        label: the true class; what the target says of x when None.
        start: another image to start from, for `optimise` and `hop-skip-jump`.

    Raises:
        ConfigError: the attack needs what is not to be had here, or a class is out of range.

    """
    first = replies(x)
    before = Said.of(first)
    classes = first.scores.shape[1]
    for flag, value in (("label", label), ("to", order.target)):
        if value is not None and not 0 <= value < classes:
            raise ConfigError(f"--{flag}: {value}; expected a class from 0 to {classes - 1}")
    truth = before.label if label is None else label
    wanted = torch.tensor([truth if order.target is None else order.target])
    notes: dict[str, float] = {}
    queries = refusals = 0
    norm = norm_named(order.norm)
    if order.method in BLACK_BOX:
        oracle = Oracle(replies, 1, order.queries, ends_at_refusal=order.ends_at_refusal)
        with torch.no_grad():
            found = _black_box(order, norm, oracle, x, wanted, start)
        queries, refusals = int(oracle.queries[0]), int(oracle.refusals[0])
    elif order.method == "transfer":
        if surrogate is None:
            raise ConfigError("--surrogate: missing; 'transfer' forges on a network of its own")
        attack = GradientAttack(order.radius, 20, order.radius / 8, norm=norm, momentum=1.0)
        found = attack(surrogate, x, wanted, aimed=order.target is not None, seed=order.seed)
    else:
        if victim is None:
            raise ConfigError(
                f"--method: {order.method!r} needs the network itself, which an address does not "
                f"give; use {', '.join(BLACK_BOX)} or transfer"
            )
        found = _white_box(order, norm, victim, x, wanted, start)
        if order.method == "physical":
            share = held_share(
                victim.logits, found, wanted, Camera(), aimed=order.target is not None
            )
            notes["holds_under_views"] = float(share[0])
    after = Said.of(replies(found))
    hit = after.label == order.target if order.target is not None else after.label != truth
    delta = found - x
    return Outcome(
        x=found,
        before=before,
        after=after,
        succeeded=hit and not after.refused,
        linf=float(delta.abs().max()),
        l2=float(torch.linalg.vector_norm(delta)),
        queries=queries,
        refusals=refusals,
        notes=notes,
    )


def _white_box(
    order: Order, norm: Norm, victim: Victim, x: Tensor, wanted: Tensor, start: Tensor | None
) -> Tensor:
    radius, steps, model = order.radius, order.steps, victim.logits
    aimed, step = order.target is not None, 2.5 * order.radius / order.steps
    if order.method == "adaptive":
        return _adaptive(order, norm, victim, x, wanted)
    if order.method in ("cw", "deepfool"):
        # They leave the classifier's own class, which an ensemble may have answered differently.
        with torch.no_grad():
            wanted = model(x).argmax(dim=1)
    if order.method == "optimise":
        optimise = TargetedOptimisation(weight=order.weight, steps=steps)
        return optimise(model, x if start is None else start, wanted, x)
    if order.method == "physical":
        return PhysicalAttack(radius, steps, norm=norm)(
            model, x, wanted, aimed=aimed, seed=order.seed
        )
    gradient = {
        "fgsm": GradientAttack(radius, 1, radius, norm=norm),
        "bim": GradientAttack(radius, steps, step, norm=norm),
        "pgd": pgd(radius, steps, norm=norm),
        "mi-fgsm": GradientAttack(radius, steps, step, norm=norm, momentum=1.0),
    }
    if order.method in gradient:
        return gradient[order.method](model, x, wanted, aimed=aimed, seed=order.seed)
    other: dict[str, Callable[..., Tensor]] = {
        "apgd": AutoPGD(radius, steps, norm),
        "apgd-dlr": AutoPGD(radius, steps, norm, loss=dlr),
        "apgd-t": TargetedAutoPGD(radius, steps, norm),
        "cw": FoolboxAttack("cw", steps=steps),
        "deepfool": FoolboxAttack("deepfool", norm.name, steps=steps),
    }
    return other[order.method](model, x, wanted, seed=order.seed)


def _adaptive(order: Order, norm: Norm, victim: Victim, x: Tensor, label: Tensor) -> Tensor:
    """By each way through the guard and from short reaches on, until one is through."""
    guard = victim.guard
    if guard is None:
        raise ConfigError("--method: 'adaptive' is for a guard; this target has none")
    ways: list[Way] = ["cheap", "both"] if guard.served.has_expensive else ["cheap"]
    found = x
    for way in ways:
        evasion = Evasion.of(guard.served, guard.cascade, way)
        for reach in (0.25, 0.5, 1.0):
            attack = Adaptive(reach * order.radius, order.steps, norm)
            found = attack(guard.served, x, label, evasion)
            judged = victim.judge(found)
            if judged.accepted[0] and judged.answered[0] != int(label[0]):
                return found
    return found


def _black_box(
    order: Order, norm: Norm, oracle: Oracle, x: Tensor, label: Tensor, start: Tensor | None
) -> Tensor:
    radius, seed = order.radius, order.seed
    if order.method == "square":
        return Square(radius, order.queries)(oracle, x, label, seed=seed)
    if order.method == "hop-skip-jump":
        return HopSkipJump(radius, norm=norm)(oracle, x, label, start=start, seed=seed)
    attack = EstimatedGradient(
        radius,
        steps=20,
        pairs=max(1, order.queries // 40),
        norm=norm,
        directions={"nes": "gaussian", "spsa": "signs", "zoo": "coordinates"}[order.method],  # type: ignore[arg-type]
    )
    return attack(oracle, x, label, seed=seed)
