"""The gradient loop: FGSM, BIM, PGD and momentum, in any norm, aimed or not.

Goodfellow, Shlens, Szegedy 2015 (arXiv:1412.6572); Kurakin, Goodfellow, Bengio 2017
(arXiv:1607.02533); Madry et al. 2018 (arXiv:1706.06083); Dong et al. 2018 (arXiv:1710.06081).
They differ in steps, start and momentum only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from firewall.attack.losses import Loss, aimed_cross_entropy, cross_entropy
from firewall.attack.norms import Linf, Norm

#: [N, C, H, W] in [0, 1] to logits [N, K].
Model = Callable[[Tensor], Tensor]
#: Gradient and images, both [N, C, H, W], to the direction of a step, in [-1, 1].
Shape = Callable[[Tensor, Tensor], Tensor]
#: Images [N, C, H, W] in [0, 1], and draws, to images of that shape and range.
Through = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class GradientAttack:
    """Settings of one attack.

    Attributes:
        radius: of the ball, in units of the image batch.
        steps: 1 from the image itself is FGSM.
        step: length of a step; FGSM's is the radius.
        norm: the ball.
        random_start: somewhere in the ball instead of the image itself.
        restarts: with other random starts; the first success, else the highest loss, is kept.
        momentum: share of the past directions that is kept (0 is PGD, 1 is MI-FGSM).
        loss: what is raised; cross-entropy, towards or away from the label, when None.
        stops: leave a row as soon as it fools. Faster, and nearer to the clean image; without it a
            forgery is as confident as the steps make it.
        shape: the direction of a step from its gradient, in place of the norm's.
        through: what happens to the images before the model sees them, drawn anew at each step.

    """

    radius: float
    steps: int
    step: float
    norm: Norm = field(default_factory=Linf)
    random_start: bool = False
    restarts: int = 1
    momentum: float = 0.0
    loss: Loss | None = None
    stops: bool = False
    shape: Shape | None = None
    through: Through | None = None

    def __call__(
        self, model: Model, x: Tensor, label: Tensor, *, aimed: bool = False, seed: int = 0
    ) -> Tensor:
        """Attack a batch.

        Args:
            model: what is attacked.
            x: [N, C, H, W] in [0, 1].
            label: [N] int64: the class to leave, or with `aimed` the class to reach.
            aimed: towards `label` instead of away from it.
            seed: of the random starts.

        Returns:
            [N, C, H, W] in [0, 1], within the radius of x.

        """
        loss = self.loss or (aimed_cross_entropy if aimed else cross_entropy)
        generator = torch.Generator().manual_seed(seed)
        best = x.clone()
        best_loss = torch.full((len(x),), -torch.inf, device=x.device)
        open_rows = torch.arange(len(x), device=x.device)
        for _ in range(self.restarts):
            part, part_label = x[open_rows], label[open_rows]
            found = self._run(model, part, part_label, loss, generator, aimed)
            if self.restarts == 1:
                return found
            with torch.no_grad():
                logits = model(found)
                value = loss(logits, part_label)
                success = (logits.argmax(dim=1) == part_label) == aimed
            better = success | (value > best_loss[open_rows])
            best[open_rows[better]] = found[better]
            best_loss[open_rows[better]] = value[better]
            # A row that is broken is not worked on again.
            open_rows = open_rows[~success]
            if not len(open_rows):
                break
        return best

    def _run(
        self,
        model: Model,
        x: Tensor,
        label: Tensor,
        loss: Loss,
        generator: torch.Generator,
        aimed: bool,
    ) -> Tensor:
        delta = torch.zeros_like(x)
        if self.random_start:
            delta = self._inside(x, self.norm.start(x, self.radius, generator))
        past = torch.zeros_like(x)
        result = torch.empty_like(x) if self.stops else x
        rows = torch.arange(len(x), device=x.device)
        for _ in range(self.steps):
            delta.requires_grad_(True)
            seen = x + delta
            logits = model(seen if self.through is None else self.through(seen, generator))
            # A sum, so that no row's gradient depends on how many there are.
            (gradient,) = torch.autograd.grad(loss(logits, label).sum(), delta)
            if self.stops:
                going = (logits.detach().argmax(dim=1) == label) != aimed
                if not bool(going.all()):
                    # What fools is done: the rest goes on without it, in a smaller batch.
                    result[rows[~going]] = (x + delta.detach())[~going]
                    x, label, rows, past = x[going], label[going], rows[going], past[going]
                    delta, gradient = delta.detach()[going], gradient[going]
                    if not len(rows):
                        break
            if self.momentum:
                size = gradient.flatten(1).abs().mean(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
                past = self.momentum * past + gradient / size
                gradient = past
            direction = (
                self.norm.direction(gradient) if self.shape is None else self.shape(gradient, x)
            )
            moved = delta.detach() + self.step * direction
            delta = self._inside(x, moved)
        found = (x + delta.detach()).clamp(0.0, 1.0)
        if not self.stops:
            return found
        result[rows] = found
        return result.clamp(0.0, 1.0)

    def _inside(self, x: Tensor, delta: Tensor) -> Tensor:
        """Into the ball and, with x, into [0, 1]; the latter only shortens."""
        return (x + self.norm.project(delta, self.radius)).clamp(0.0, 1.0) - x


def fgsm(radius: float) -> GradientAttack:
    """One step of the whole radius."""
    return GradientAttack(radius=radius, steps=1, step=radius)


def pgd(
    radius: float,
    steps: int,
    *,
    norm: Norm | None = None,
    restarts: int = 1,
    stops: bool = False,
) -> GradientAttack:
    """Projected gradient descent from a random start, steps of 2.5 radius / steps."""
    return GradientAttack(
        radius=radius,
        steps=steps,
        step=2.5 * radius / steps,
        norm=norm or Linf(),
        random_start=True,
        restarts=restarts,
        stops=stops,
    )
