"""Training objectives: what is minimised on a batch. Each is a small frozen object.

An objective makes its own adversarial images with the network as it is, and gives one loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from firewall.attack.gradient import Model


class Trainee(Protocol):
    """The network that is trained: callable for logits, and perhaps bounded."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """[N, C, H, W] to logits [N, K]."""

    def leads(self, x: Tensor, radius: float, label: Tensor) -> Tensor:
        """As `firewall.guard.classifier.Bounded`."""

    def crown_leads(self, x: Tensor, radius: float, label: Tensor) -> tuple[Tensor, Tensor]:
        """By a linear bound and by intervals, each [N, K]."""


class Objective(Protocol):
    """A loss on a batch."""

    def __call__(
        self, model: Trainee, x: Tensor, y: Tensor, generator: Generator, share: float = 1.0
    ) -> Tensor:
        """A mean loss, with a graph.

        Args:
            model: the network as it is.
            x: [N, C, H, W] images in [0, 1].
            y: [N] labels; or [N, K] probabilities, which `Mart`, `IntervalBound` and `Apart` do
                not take.
            generator: of every draw.
            share: of its radius, from 0 to 1, where a phase begins with less.

        """


@dataclass(frozen=True)
class Standard:
    """Cross-entropy on clean images."""

    smoothing: float = 0.0

    def __call__(
        self, model: Model, x: Tensor, y: Tensor, generator: Generator, share: float = 1.0
    ) -> Tensor:
        """Mean loss."""
        return F.cross_entropy(model(x), y, label_smoothing=self.smoothing)


@dataclass(frozen=True)
class GaussianNoise:
    """Cross-entropy on noisy images, for randomised smoothing (Cohen et al. 2019).

    Attributes:
        sigma: standard deviation, where values lie in [0, 1].

    """

    sigma: float

    def __call__(
        self, model: Trainee, x: Tensor, y: Tensor, generator: Generator, share: float = 1.0
    ) -> Tensor:
        """Mean loss. Clipped, as the served graph clips what it is sent."""
        noise = torch.randn(x.shape, generator=generator).to(x.device)
        return F.cross_entropy(model((x + share * self.sigma * noise).clamp(0.0, 1.0)), y)


@dataclass(frozen=True)
class SingleStep:
    """One step from noise: FGSM-RS (Wong et al. 2020, arXiv:2001.03994) or N-FGSM (de Jorge et al.
    2022, arXiv:2202.01181), whose noise is larger than the ball and is not clipped back.

    Attributes:
        radius: L-infinity.
        noise: half-width of the uniform start, in radii: 1 for FGSM-RS, 2 for N-FGSM.
        step: in radii.
        clipped: back into the ball after the step, as FGSM-RS does.

    """

    radius: float
    noise: float = 2.0
    step: float = 1.0
    clipped: bool = False

    def __call__(
        self, model: Model, x: Tensor, y: Tensor, generator: Generator, share: float = 1.0
    ) -> Tensor:
        """Mean cross-entropy on the adversarial images."""
        radius = share * self.radius
        delta = (_uniform(x, generator) * self.noise * radius).requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y), delta)
        moved = delta.detach() + self.step * radius * gradient.sign()
        if self.clipped:
            moved = moved.clamp(-radius, radius)
        return F.cross_entropy(model((x + moved).clamp(0.0, 1.0)), y)


@dataclass(frozen=True)
class Inner:
    """The inner maximisation of adversarial training: PGD on a given loss.

    Attributes:
        radius: L-infinity.
        steps: of PGD.
        step: in radii.

    """

    radius: float
    steps: int = 7
    step: float = 0.3

    def on_labels(
        self, model: Model, x: Tensor, y: Tensor, generator: Generator, share: float = 1.0
    ) -> Tensor:
        """From a random start, away from labels; detached."""
        radius = share * self.radius
        start = _uniform(x, generator) * radius
        return self._climb(
            x, start, radius, lambda at: F.cross_entropy(model(at), y, reduction="sum")
        )

    def off_logits(
        self, model: Model, x: Tensor, logits: Tensor, generator: Generator, share: float = 1.0
    ) -> Tensor:
        """From a hair beside the image, away from what the network says of it; detached."""
        start = 1e-3 * torch.randn(x.shape, generator=generator).to(x.device)
        wanted = logits.detach().softmax(dim=1)
        return self._climb(
            x,
            start,
            share * self.radius,
            lambda at: F.kl_div(model(at).log_softmax(dim=1), wanted, reduction="sum"),
        )

    def _climb(
        self, x: Tensor, start: Tensor, radius: float, value: Callable[[Tensor], Tensor]
    ) -> Tensor:
        point = (x + start).clamp(0.0, 1.0)
        for _ in range(self.steps):
            point = point.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(value(point), point)
            moved = point.detach() + self.step * radius * gradient.sign()
            point = (x + (moved - x).clamp(-radius, radius)).clamp(0.0, 1.0)
        return point.detach()


@dataclass(frozen=True)
class AdversarialTraining:
    """Cross-entropy on PGD's images (Madry et al. 2018), and on the clean ones by a weight.

    Attributes:
        inner: the attack.
        clean_weight: of L(x) beside L(x_adv): 0 is Madry's, 1 the plain sum.

    """

    inner: Inner
    clean_weight: float = 0.0

    def __call__(
        self, model: Model, x: Tensor, y: Tensor, generator: Generator, share: float = 1.0
    ) -> Tensor:
        """Mean loss."""
        forged = self.inner.on_labels(model, x, y, generator, share)
        loss = F.cross_entropy(model(forged), y)
        if self.clean_weight:
            loss = (loss + self.clean_weight * F.cross_entropy(model(x), y)) / (
                1 + self.clean_weight
            )
        return loss


@dataclass(frozen=True)
class LogitPairing:
    """Cross-entropy on both, and equal logits for an image and its forgery (Kannan et al. 2018,
    arXiv:1803.06373). Alone it is known to mask gradients: look at the warnings.
    """

    inner: Inner
    weight: float = 0.5

    def __call__(
        self, model: Model, x: Tensor, y: Tensor, generator: Generator, share: float = 1.0
    ) -> Tensor:
        """Mean loss."""
        forged = self.inner.on_labels(model, x, y, generator, share)
        clean, adversarial = model(x), model(forged)
        cross = 0.5 * (F.cross_entropy(clean, y) + F.cross_entropy(adversarial, y))
        return cross + self.weight * (clean - adversarial).square().mean()


@dataclass(frozen=True)
class Trades:
    """TRADES (Zhang et al. 2019, arXiv:1901.08573): clean loss + beta KL(clean || adversarial)."""

    inner: Inner
    beta: float = 6.0

    def __call__(
        self, model: Model, x: Tensor, y: Tensor, generator: Generator, share: float = 1.0
    ) -> Tensor:
        """Mean loss."""
        with torch.no_grad():
            before = model(x)
        forged = self.inner.off_logits(model, x, before, generator, share)
        clean, adversarial = model(x), model(forged)
        apart = F.kl_div(
            adversarial.log_softmax(dim=1), clean.softmax(dim=1), reduction="batchmean"
        )
        return F.cross_entropy(clean, y) + self.beta * apart


@dataclass(frozen=True)
class Mart:
    """MART (Wang et al. 2020): a boosted cross-entropy, and KL weighted by how wrong a row is."""

    inner: Inner
    weight: float = 5.0

    def __call__(
        self, model: Model, x: Tensor, y: Tensor, generator: Generator, share: float = 1.0
    ) -> Tensor:
        """Mean loss."""
        forged = self.inner.on_labels(model, x, y, generator, share)
        clean, adversarial = model(x).softmax(dim=1), model(forged)
        probabilities = adversarial.softmax(dim=1)
        mine = F.one_hot(y, probabilities.shape[1]).bool()
        other = probabilities.masked_fill(mine, 0.0).amax(dim=1)
        boosted = F.cross_entropy(adversarial, y) - torch.log(1.0001 - other + 1e-12).mean()
        apart = (clean * (torch.log(clean + 1e-12) - adversarial.log_softmax(dim=1))).sum(dim=1)
        doubt = 1.0001 - clean.gather(1, y[:, None])[:, 0]
        return boosted + self.weight * (apart * doubt).mean()


@dataclass(frozen=True)
class IntervalBound:
    """Cross-entropy on the worst logits that interval bounds allow (Gowal et al. 2018,
    arXiv:1810.12715), mixed with cross-entropy on an attack's images (MTL-IBP, De Palma et al.
    2024, arXiv:2305.13991): a small share of bounds gives accuracy, a large one certificates.

    Attributes:
        radius: L-infinity, of the bounds.
        weight: share of the bounds' loss, in (0, 1].
        inner: the attack; None takes the clean images for the other share.
        crown: whether the bounds begin as linear ones, of CROWN-IBP, and become intervals as the
            radius grows.

    """

    radius: float
    weight: float = 1.0
    inner: Inner | None = None
    crown: bool = False

    def __call__(
        self, model: Trainee, x: Tensor, y: Tensor, generator: Generator, share: float = 1.0
    ) -> Tensor:
        """Mean loss."""
        # -lead is how far another class may get ahead: 0 for the label itself.
        radius = share * self.radius
        if self.crown and share < 1:
            linear, plain = model.crown_leads(x, radius, y)
            leads = (1 - share) * linear + share * plain
        else:
            leads = model.leads(x, radius, y)
        loss = F.cross_entropy(-leads, y)
        if self.weight == 1:
            return loss
        seen = x if self.inner is None else self.inner.on_labels(model, x, y, generator, share)
        return self.weight * loss + (1 - self.weight) * F.cross_entropy(model(seen), y)


@dataclass(frozen=True)
class Apart:
    """An objective, and a penalty on input gradients that point where other networks' do, so that
    what moves one of an ensemble leaves the others (after Kariyappa and Qureshi 2019,
    arXiv:1901.09981; here against networks that are trained already, up to right angles, and on
    rows that are classified rightly).

    Attributes:
        objective: what is learnt.
        others: networks trained before, frozen: images to logits.
        weight: of the penalty.

    """

    objective: Objective
    others: tuple[Model, ...]
    weight: float = 0.5

    def __call__(
        self, model: Trainee, x: Tensor, y: Tensor, generator: Generator, share: float = 1.0
    ) -> Tensor:
        """Mean loss."""
        loss = self.objective(model, x, y, generator, share)
        if not self.others:
            return loss
        point = x.detach().requires_grad_(True)
        logits = model(point)
        # Where it is wrong its gradient says nothing yet; and to be wrong is an easy way apart.
        right = (logits.argmax(dim=1) == y).float()
        cross = F.cross_entropy(logits, y, reduction="sum")
        (mine,) = torch.autograd.grad(cross, point, create_graph=True)
        likeness: list[Tensor] = []
        for other in self.others:
            cross = F.cross_entropy(other(point), y, reduction="sum")
            (theirs,) = torch.autograd.grad(cross, point)
            # Gradients are as small as images are clear: no floor that would hide their angle.
            cosine = F.cosine_similarity(mine.flatten(1), theirs.flatten(1), eps=1e-20)
            # Right angles are enough.
            likeness.append(right * cosine.clamp_min(0.0))
        return loss + self.weight * torch.stack(likeness).mean()


def _uniform(x: Tensor, generator: Generator) -> Tensor:
    """From -1 to 1, drawn on the CPU: the same numbers on every device."""
    return torch.rand(x.shape, generator=generator).to(x.device) * 2 - 1
