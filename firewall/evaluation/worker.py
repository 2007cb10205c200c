"""What is done to a shard's rows: judged as they are, attacked and judged, or probed."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from firewall.attack.adaptive import Adaptive, Evasion
from firewall.attack.apgd import AutoPGD
from firewall.attack.expectation import is_random
from firewall.attack.gradient import GradientAttack, Model, pgd
from firewall.attack.losses import cross_entropy, dlr, margin
from firewall.attack.norms import Norm, norm_named
from firewall.attack.suite import Entry, Forged, Setting, suite
from firewall.attack.victim import Victim
from firewall.evaluation.request import Request
from firewall.evaluation.shards import Columns, Job
from firewall.evaluation.target import Target

#: Rows of each attack whose pictures are kept for the report.
GALLERY = 4
#: Steps of the attack that is drawn as a loss curve.
CURVE_STEPS = 100
#: A radius at which everything is within reach, by norm; of L2, for one value, times its root.
LARGE = {"linf": 1.0, "l2": 1.0}


@dataclass(frozen=True)
class Make:
    """Makes the worker, here or in another process."""

    target: Target
    request: Request
    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    surrogates: tuple[tuple[str, torch.nn.Module], ...]

    def __call__(self) -> EvaluationWorker:
        """A worker on the target."""
        return EvaluationWorker(
            self.target.victim(self.request.rate), self.request, self.x, self.y, self.surrogates
        )


def setting_of(
    victim: Victim, request: Request, x: Tensor, surrogates: tuple[tuple[str, Model], ...] = ()
) -> Setting:
    """How a victim is attacked; looks at a few images whether it is random."""
    return Setting(
        victim=victim,
        norm=norm_named(request.norm),
        radius=request.radius,
        steps=request.steps,
        queries=request.queries,
        draws=request.draws if is_random(victim.logits, x[:4]) else 1,
        surrogates=surrogates,
    )


class EvaluationWorker:
    """Holds a victim and the data; does jobs by the name of their task."""

    def __init__(
        self,
        victim: Victim,
        request: Request,
        x: npt.NDArray[np.float32],
        y: npt.NDArray[np.int64],
        surrogates: tuple[tuple[str, Model], ...] = (),
    ) -> None:
        self._victim = victim
        self._request = request
        self._x, self._y = torch.from_numpy(x), torch.from_numpy(y)
        self.setting = setting_of(victim, request, self._x, surrogates)
        self.entries = suite(request.suite, self.setting)
        self.certifies = (
            request.norm == "linf" and victim.leads(self._x[:1], request.radius) is not None
        )

    def __call__(self, job: Job) -> Columns:
        """The columns of a job's rows.

        Tasks are `clean`, `attack-NN` (a place in the suite), `probe-NAME` and `curve-RADIUS`.
        """
        kind, _, rest = job.task.partition("-")
        x, y = self._x[job.start : job.stop], self._y[job.start : job.stop]
        if kind == "clean":
            return self._judged(x, y)
        if kind == "attack":
            return self._attacked(self.entries[int(rest)], x, y, job)
        if kind == "curve":
            return self._at_radius(float(rest), x, y)
        return self._probes()[rest](x, y)

    def _attacked(self, entry: Entry, x: Tensor, y: Tensor, job: Job) -> Columns:
        begun = time.monotonic()
        forged = entry.run(x, y, self._request.seed + job.start)
        found = self._inside(entry, x, forged)
        columns = self._judged(found, y)
        delta = found - x
        seconds = (time.monotonic() - begun) / len(x)
        columns["queries"] = [0] * len(x) if forged.queries is None else forged.queries.tolist()
        columns["seconds"] = [seconds] * len(x)
        columns["raised"] = self._raised(entry, x, found, y)
        columns["linf"] = delta.flatten(1).abs().amax(dim=1).tolist()
        columns["l2"] = torch.linalg.vector_norm(delta.flatten(1), dim=1).tolist()
        if job.start == 0:
            kept = (found[:GALLERY] * 255).round().to(torch.uint8).numpy()
            pictures = [base64.b64encode(one.tobytes()).decode() for one in kept]
            columns["picture"] = [*pictures, *([""] * (len(x) - len(kept)))]
        else:
            columns["picture"] = [""] * len(x)
        return columns

    def _raised(self, entry: Entry, x: Tensor, found: Tensor, y: Tensor) -> list[bool]:
        """Whether the attack's own loss is higher than it was, or the row is broken."""
        if entry.loss is None:
            return [True] * len(x)
        with torch.no_grad():
            before, after = self._victim.logits(x), self._victim.logits(found)
            raised = entry.loss(after, y) > entry.loss(before, y)
        done: list[bool] = (raised | (after.argmax(dim=1) != y)).tolist()
        return done

    def _inside(self, entry: Entry, x: Tensor, forged: Forged) -> Tensor:
        # Measured, not claimed: back into the ball and the range, then judged as served.
        if not entry.bounded:
            return forged.x.clamp(0.0, 1.0)
        norm: Norm = self.setting.norm
        inside = (x + norm.project(forged.x - x, self._request.radius)).clamp(0.0, 1.0)
        return self._victim.representable(inside, x)

    def _judged(self, x: Tensor, y: Tensor) -> Columns:
        judged = self._victim.judge(x)
        truth = y.numpy()
        columns: Columns = {
            "accepted": judged.accepted.tolist(),
            "right": (judged.answered == truth).tolist(),
            "bare_right": (judged.bare == truth).tolist(),
            "answered": judged.answered.tolist(),
            "bare": judged.bare.tolist(),
            "averaged": judged.averaged.tolist(),
            "score": judged.scores.tolist(),
            "p_value": judged.p_values.tolist(),
            "statistics": judged.statistics.tolist(),
        }
        if self.certifies:
            # At the radius itself, and at the half of it that paranoia 4 asks for.
            for name, part in (("lead", 1.0), ("half_lead", 0.5)):
                leads = self._victim.leads(x, part * self._request.radius)
                assert leads is not None
                columns[name] = leads.tolist()
        return columns

    def _at_radius(self, radius: float, x: Tensor, y: Tensor) -> Columns:
        """What stands at another radius, against the strongest affordable attacks."""
        setting, steps = self.setting, self._request.steps
        attacks: list[Callable[[], Tensor]] = [
            lambda: AutoPGD(radius, steps, setting.norm)(setting.model, x, y),
            lambda: AutoPGD(radius, steps, setting.norm, loss=dlr)(setting.model, x, y),
        ]
        guard = self._victim.guard
        if guard is not None:
            evasion = Evasion.of(guard.served, guard.cascade, "cheap")
            adaptive = Adaptive(radius, 2 * steps, setting.norm)
            attacks.append(lambda: adaptive(guard.served, x, y, evasion))
        stands = np.ones(len(x), np.bool_)
        bare = np.ones(len(x), np.bool_)
        clean = self._victim.judge(x)
        stands &= clean.accepted & (clean.answered == y.numpy())
        for attack in attacks:
            judged = self._victim.judge(attack())
            stands &= ~(judged.accepted & (judged.answered != y.numpy()))
            bare &= judged.bare == y.numpy()
        return {"stands": stands.tolist(), "bare": bare.tolist()}

    def _probes(self) -> dict[str, Callable[[Tensor, Tensor], Columns]]:
        """What makes figures trustworthy or not (Carlini et al. 2019), on the bare classifier."""
        setting, steps = self.setting, self._request.steps
        norm, radius, seed = setting.norm, setting.radius, self._request.seed
        large = LARGE[norm.name]

        def fooled(found: Tensor, y: Tensor) -> Columns:
            with torch.no_grad():
                said = setting.model(found).argmax(dim=1)
            return {"fooled": (said != y).tolist()}

        def noise(x: Tensor, y: Tensor) -> Columns:
            generator = torch.Generator().manual_seed(seed + 1)
            drawn = norm.direction(torch.randn(x.shape, generator=generator))
            return fooled((x + radius * drawn).clamp(0.0, 1.0), y)

        def far(x: Tensor, y: Tensor) -> Columns:
            # Whichever of the two losses gets further counts.
            reach = large * (x[0].numel() ** 0.5 if norm.name == "l2" else 1.0)
            either = torch.zeros(len(x), dtype=torch.bool)
            for loss in (dlr, cross_entropy):
                found = AutoPGD(reach, max(50, steps), norm, loss)(setting.model, x, y)
                either |= torch.tensor(fooled(found, y)["fooled"])
            return {"fooled": either.tolist()}

        return {
            "noise": noise,
            "large": far,
            "steps": lambda x, y: fooled(
                AutoPGD(radius, 4 * steps, norm)(setting.model, x, y, seed=seed), y
            ),
            "restarts": lambda x, y: fooled(
                pgd(radius, steps, norm=norm, restarts=5, stops=True)(
                    setting.model, x, y, seed=seed
                ),
                y,
            ),
            "gradient": self._gradients,
            "loss": self._losses,
        }

    def _gradients(self, x: Tensor, y: Tensor) -> Columns:
        """Whose gradient of cross-entropy is nothing at all, and who is answered at random."""
        point = x.clone().requires_grad_(True)
        value = cross_entropy(self._victim.logits(point), y).sum()
        (gradient,) = torch.autograd.grad(value, point)
        vanished = gradient.flatten(1).abs().amax(dim=1) == 0
        with torch.no_grad():
            first, second = (self._victim.logits(x) for _ in range(2))
        scale = first.abs().amax(dim=1) + 1e-12
        random = (first - second).abs().amax(dim=1) > 1e-4 * scale
        return {"vanished": vanished.tolist(), "random": random.tolist()}

    def _losses(self, x: Tensor, y: Tensor) -> Columns:
        """Of each row, cross-entropy and margin along PGD: [steps] each."""
        seen: list[tuple[list[float], list[float]]] = []

        def watched(point: Tensor) -> Tensor:
            logits = self.setting.model(point)
            with torch.no_grad():
                seen.append(
                    (cross_entropy(logits, y).tolist(), margin(logits, y).clamp(-1e3, 1e3).tolist())
                )
            return logits

        radius = self._request.radius
        attack = GradientAttack(
            radius, CURVE_STEPS, 2.5 * radius / CURVE_STEPS, norm=self.setting.norm
        )
        attack(watched, x, y)
        curves: Columns = {"cross_entropy": [], "margin": []}
        for row in range(len(x)):
            curves["cross_entropy"].append([min(step[0][row], 1e3) for step in seen])
            curves["margin"].append([step[1][row] for step in seen])
        return curves
