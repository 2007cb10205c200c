"""Rare combinations of class and attribute, drawn by moving codes.

White trousers may be rare where black ones are not. Codes whose images have an attribute differ
from those that have it not by a direction (`latent.py`); moved along it, codes of any class give
images that have it. What the data has little of is so added to the mix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from firewall.generate.latent import direction
from firewall.generate.networks import GenerativeNetwork
from firewall.train.fit_network import Images

AttributeName = Literal["bright", "large", "contrast"]
#: Codes of a class from which a direction is learnt, and lengths of it that are gone at most.
_LABELLED, _REACH = 256, 3.0
_BATCH, _TRIES = 500, 20


def _bright(x: Tensor) -> Tensor:
    """Mean of what is not background."""
    shown = (x > 0.1).float()
    return (x * shown).flatten(1).sum(dim=1) / shown.flatten(1).sum(dim=1).clamp_min(1.0)


def _large(x: Tensor) -> Tensor:
    """Share of pixels that are not background."""
    return (x.mean(dim=1) > 0.1).float().flatten(1).mean(dim=1)


def _contrast(x: Tensor) -> Tensor:
    """Deviation of all pixels."""
    return x.flatten(1).std(dim=1)


#: Each image [N, C, H, W] in [0, 1] to a number [N].
MEASURES: Mapping[AttributeName, Callable[[Tensor], Tensor]] = {
    "bright": _bright,
    "large": _large,
    "contrast": _contrast,
}


def rare(
    generator: GenerativeNetwork,
    train: Images,
    name: AttributeName,
    rows: int,
    *,
    seed: int,
) -> Images:
    """Images of the combinations that the data has least of.

    An attribute is there where its measure is above the median of all training images. Of each
    class the rarer side is drawn, the more of it the rarer it is.

    Args:
        generator: frozen.
        train: real images, by which combinations are counted.
        name: of the attribute.
        rows: in all; fewer where the generator cannot draw what is asked for.
        seed: of every draw.

    """
    draws = torch.Generator().manual_seed(seed)
    measure = MEASURES[name]
    values = torch.cat([measure(part.float() / 255) for part in torch.split(train.x, _BATCH)])
    middle = float(values.median())
    share = torch.tensor(
        [float((values[train.y == label] > middle).float().mean())
         for label in range(generator.classes)]
    )  # fmt: skip
    wanted = share < 0.5
    lacking = (share - 0.5).abs()
    if float(lacking.sum()) == 0:
        lacking = torch.ones_like(lacking)
    counts = (rows * lacking / lacking.sum()).long()
    made: list[Tensor] = []
    labels: list[Tensor] = []
    for label in range(generator.classes):
        one = _moved(
            generator, measure, middle, label, bool(wanted[label]), int(counts[label]), draws
        )
        made.append(one)
        labels.append(torch.full((len(one),), label))
    return Images(torch.cat(made), torch.cat(labels))


def _moved(
    generator: GenerativeNetwork,
    measure: Callable[[Tensor], Tensor],
    middle: float,
    label: int,
    wanted: bool,
    count: int,
    draws: torch.Generator,
) -> Tensor:
    """[count, C, H, W] uint8 images of a class that have an attribute, or have it not."""
    nothing = torch.zeros(0, *generator.shape, dtype=torch.uint8)
    if not count:
        return nothing
    codes = torch.randn(_LABELLED, generator.latent, generator=draws)
    values = _measured(generator, measure, codes, label)[1]
    has = values > middle
    # Where all codes have it or none has, the class's own upper or lower half shows the way.
    split = has if bool(has.any()) and not bool(has.all()) else values > values.median()
    if not bool(split.any()) or bool(split.all()):
        return nothing
    way = direction(codes, split)
    way = way / torch.linalg.vector_norm(way).clamp_min(1e-12) * (1.0 if wanted else -1.0)
    found: list[Tensor] = []
    have = 0
    for _ in range(_TRIES):
        codes = torch.randn(_BATCH, generator.latent, generator=draws)
        steps = _REACH * torch.rand(_BATCH, 1, generator=draws)
        moved = codes + steps * way
        # At the length that codes have.
        length = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
        moved = moved * (generator.latent**0.5 / length)
        images, values = _measured(generator, measure, moved, label)
        good = (values > middle) == wanted
        found.append((images[good] * 255).round().to(torch.uint8))
        have += int(good.sum())
        if have >= count:
            break
    return torch.cat([nothing, *found])[:count]


def _measured(
    generator: GenerativeNetwork, measure: Callable[[Tensor], Tensor], codes: Tensor, label: int
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        images = generator(codes, torch.full((len(codes),), label))
    return images, measure(images)
