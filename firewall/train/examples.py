"""Examples for stages that learn: benign images as they arrive, and forgeries of many kinds."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from firewall.attack.gradient import Model
from firewall.core.forgeries import Kind, kinds, to_pixels
from firewall.core.handling import Handling, Pixels, handled, sent
from firewall.stages import Examples

#: Images that are forged together.
_BATCH = 8
#: Radius for which the catalogue of kinds is made.
_USUAL = 4 / 255


@cache
def gradients_each() -> float:
    """How many gradients a forgery takes on average, about."""
    steps = {"FGSM": 1, "stripes and squares": 0, "patch": 20, "least L2": 31, "aimed PGD": 12}
    catalogue = kinds()
    total = sum(one.share * steps.get(name, 12) for name, one in catalogue.items())
    return total / sum(one.share for one in catalogue.values())


def make_examples(
    model: Model, x: Tensor, label: Tensor, radius: float, count: int, seed: int
) -> Examples:
    """Forge images in turn, each time in a kind that is drawn, and handle them benignly.

    Args:
        model: images in [0, 1] to logits.
        x: [N, C, H, W] clean images in [0, 1].
        label: [N] their classes.
        radius: L-infinity, of the usual attacker; others are drawn around it.
        count: of forgeries, at least.
        seed: of every draw.

    """
    rng = np.random.default_rng(seed)
    catalogue: tuple[Kind, ...] = tuple(kinds().values())
    shares = np.array([kind.share for kind in catalogue])
    forged: list[Pixels] = []
    benign: list[Pixels] = []
    order: list[int] = []
    while len(forged) < count:
        if len(order) < min(_BATCH, len(x)):
            order += rng.permutation(len(x)).tolist()
        rows, order = order[:_BATCH], order[_BATCH:]
        kind = catalogue[int(rng.choice(len(catalogue), p=shares / shares.sum()))]
        reach = int(rng.choice(kind.radii)) / 255 * radius / _USUAL
        found = kind.forge(model, x[rows], label[rows], reach, int(rng.integers(2**31)))
        forged += [_like(one, sent, rng) for one in to_pixels(found)]
        for one in to_pixels(x[rows]):
            benign += [_like(one, handled, rng), _like(one, sent, rng)]
    return Examples(_batch(benign), _batch(forged))


def handled_half(pixels: Pixels, seed: int) -> Pixels:
    """[N, H, W, C]: every second image handled in some benign way, the others as they are."""
    rng = np.random.default_rng(seed)
    return np.stack(
        [_like(one, handled, rng) if number % 2 else one for number, one in enumerate(pixels)]
    )


def _like(pixels: Pixels, way: Handling, rng: np.random.Generator) -> Pixels:
    """Handle [H, W, C] as three channels, whatever C is."""
    channels = pixels.shape[2]
    if channels == 3:
        return way(pixels, rng)
    colour = np.repeat(pixels[:, :, :1], 3, axis=2) if channels == 1 else pixels[:, :, :3]
    found = way(np.ascontiguousarray(colour), rng)
    return np.concatenate([found[:, :, : min(channels, 3)], pixels[:, :, 3:]], axis=2)


def _batch(pixels: list[Pixels]) -> Tensor:
    stacked = np.stack(pixels).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(stacked)).float() / 255
