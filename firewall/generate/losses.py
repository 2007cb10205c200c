"""What the two players of a GAN minimise, on the discriminator's logits of real and generated rows.

A discriminator D gives each image a logit; positive says real. The generator G has images of its
own judged. Which to take:

- `non-saturating`: the default; G learns most when D sees through it (Goodfellow et al. 2014).
- `minimax`: the game as it is analysed. G's gradient vanishes when D is sure, which it is early on:
  for demonstrations.
- `hinge`: D stops at a margin of 1 (Lim and Ye 2017, arXiv:1705.02894); with spectral norm.
- `least-squares`: D regresses to 1 and 0 (Mao et al. 2017, arXiv:1611.04076); calm gradients, good
  for patches.
- `relativistic`: real against generated in pairs (Jolicoeur-Martineau 2018, arXiv:1807.00734); no
  mode can be dropped without paying for it; with R1 and R2 (Huang et al. 2024, arXiv:2501.05441).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

LossName = Literal["non-saturating", "minimax", "hinge", "least-squares", "relativistic"]


@dataclass(frozen=True)
class GanLoss:
    """One game: each a mean loss, of logits [N, ...] of real and of generated images.

    Attributes:
        discriminator: what D minimises.
        generator: what G minimises; only `relativistic` looks at the real ones.

    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]


def gan_loss(name: LossName, smoothing: float = 0.0) -> GanLoss:
    """A game by name.

    Args:
        name: as above.
        smoothing: one-sided, of labels: real images are to be 1 - `smoothing` real (Salimans et al.
            2016, arXiv:1606.03498); smoothing generated ones as well would praise them. `hinge` and
            `relativistic` have no labels.

    """
    discriminate = partial(_cross_entropies, smoothing)
    games = {
        "non-saturating": GanLoss(discriminate, _non_saturating),
        "minimax": GanLoss(discriminate, _minimax),
        "hinge": GanLoss(_hinge, _worth),
        "least-squares": GanLoss(partial(_squares, smoothing), _square),
        "relativistic": GanLoss(_pairs, lambda real, generated: _pairs(generated, real)),
    }
    return games[name]


def _cross_entropies(smoothing: float, real: Tensor, generated: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(G(z)))."""
    return _cross_entropy(real, 1.0 - smoothing) + _cross_entropy(generated, 0.0)


def _non_saturating(real: Tensor, generated: Tensor) -> Tensor:
    """-log D(G(z))."""
    return _cross_entropy(generated, 1.0)


def _minimax(real: Tensor, generated: Tensor) -> Tensor:
    """log(1 - D(G(z))): what D maximises with its sign turned; hardly a slope where D is sure."""
    return -_cross_entropy(generated, 0.0)


def _hinge(real: Tensor, generated: Tensor) -> Tensor:
    """max(0, 1 - D(x)) + max(0, 1 + D(G(z)))."""
    return F.relu(1.0 - real).mean() + F.relu(1.0 + generated).mean()


def _worth(real: Tensor, generated: Tensor) -> Tensor:
    """-D(G(z))."""
    return -generated.mean()


def _squares(smoothing: float, real: Tensor, generated: Tensor) -> Tensor:
    """(D(x) - 1)^2 / 2 + D(G(z))^2 / 2."""
    return 0.5 * ((real - (1.0 - smoothing)).square().mean() + generated.square().mean())


def _square(real: Tensor, generated: Tensor) -> Tensor:
    """(D(G(z)) - 1)^2 / 2."""
    return 0.5 * (generated - 1.0).square().mean()


def _pairs(real: Tensor, generated: Tensor) -> Tensor:
    """softplus(D(G(z)) - D(x)), pair by pair."""
    return F.softplus(generated - real).mean()


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Mean squared length of D's gradient (Mescheder et al. 2018, arXiv:1801.04406).

    On real images it is R1, on generated ones R2.

    Args:
        logits: [N, ...] of the images, with a graph.
        images: [N, C, H, W] that require a gradient.

    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean()


def _cross_entropy(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))
