"""Transfer: forge on a network of one's own, send once (Papernot et al. 2017, arXiv:1602.02697).

The surrogate is trained on the attacker's own data: with its own labels, and then the target is not
asked at all, or with the target's answers, one query an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from firewall.attack.gradient import Model
from firewall.attack.oracle import Oracle


class SurrogateCnn(nn.Module):
    """A small convolutional classifier of any image size: [N, C, H, W] in [0, 1] to [N, K]."""

    def __init__(self, channels: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * width, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, K]."""
        y: Tensor = self.body(x * 2 - 1)
        return y


@dataclass(frozen=True)
class SurrogateTraining:
    """How a surrogate is trained.

    Attributes:
        epochs: over the attacker's data.
        batch: rows of a step.
        rate: Adam's.
        noise: standard deviation of Gaussian noise on the images, so that what is forged on the
            surrogate carries over.

    """

    epochs: int = 10
    batch: int = 128
    rate: float = 2e-3
    noise: float = 0.05

    def __call__(self, x: Tensor, label: Tensor, classes: int, *, seed: int = 0) -> nn.Module:
        """Train on [N, C, H, W] images in [0, 1] and [N] labels; the network is frozen."""
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = SurrogateCnn(x.shape[1], classes)
        adam = torch.optim.Adam(network.parameters(), self.rate)
        for _ in range(self.epochs):
            for rows in torch.split(torch.randperm(len(x), generator=generator), self.batch):
                clean = x[rows]
                noise = self.noise * torch.randn(clean.shape, generator=generator)
                adam.zero_grad()
                logits = network((clean + noise).clamp(0.0, 1.0))
                F.cross_entropy(logits, label[rows]).backward()  # type: ignore[no-untyped-call]
                adam.step()
        return network.eval().requires_grad_(False)


def labelled_by(oracle: Oracle, x: Tensor) -> tuple[Tensor, Tensor]:
    """The target's own labels for [N, C, H, W], one query each.

    Returns:
        The images that were answered [M, C, H, W], and their top classes [M].

    """
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for rows in torch.split(oracle.may_ask().nonzero()[:, 0], 128):
        replies = oracle.ask(x[rows], rows)
        images.append(x[rows][~replies.refused])
        labels.append(replies.scores.argmax(dim=1)[~replies.refused])
    return torch.cat(images), torch.cat(labels)


def agreement(surrogate: Model, x: Tensor, label: Tensor) -> float:
    """Share of [N] labels that a surrogate gives as well."""
    with torch.no_grad():
        return float((surrogate(x).argmax(dim=1) == label).float().mean())
