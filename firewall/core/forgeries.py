"""Forgeries of photographs to learn from: of several classifiers, at several sizes, of many kinds.

Each forgery is kept beside the very photograph from which it was made, at the size that is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Generator, Tensor

from firewall.attack.apgd import AutoPGD
from firewall.attack.gradient import GradientAttack, Model, Shape, Through, fgsm, pgd
from firewall.attack.losses import cross_entropy, dlr
from firewall.attack.minimal import DecoupledNorm
from firewall.attack.shaping import (
    diverse_inputs,
    low_frequency,
    one_for_all_channels,
    textured_only,
    through_jpeg,
    translation_invariant,
)
from firewall.core.handling import Pixels, handled, resized

#: Model, images [N, 3, H, W] in [0, 1], their labels [N], radius and seed to forgeries.
Forger = Callable[[Model, Tensor, Tensor, float, int], Tensor]
#: Side in pixels of what is sent.
SIDE = 224
#: Images of a batch, which share a classifier, a size, a kind and a radius.
BATCH = 8
#: Share of photographs that were handled before they were forged.
_HANDLED = 0.4
_HOW = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Network:
    """A classifier to forge.

    Attributes:
        name: for the record.
        model: images in [0, 1] to logits.
        sides: of images that it takes, in pixels.
        share: of all forgeries.

    """

    name: str
    model: Model
    sides: tuple[int, ...]
    share: float


@dataclass(frozen=True)
class Kind:
    """A kind of forgery.

    Attributes:
        share: of all forgeries.
        radii: L-infinity, in 255ths; without effect on those that take the least L2 norm.
        forge: makes them.

    """

    share: float
    radii: tuple[int, ...]
    forge: Forger


def kinds() -> Mapping[str, Kind]:
    """Every kind that the shipped detectors learn from, by name."""
    every, large = (1, 2, 3, 4, 6, 8), (4, 6, 8)
    return {
        "FGSM": Kind(0.13, every, lambda m, x, y, r, s: fgsm(r)(m, x, y, seed=s)),
        "PGD": Kind(0.15, every, _pgd),
        "PGD, stopped": Kind(0.07, (2, 4, 8), _stopped),
        "APGD-CE": Kind(0.06, (2, 4, 8), _apgd_ce),
        "APGD-DLR": Kind(0.05, (2, 4, 8), _apgd_dlr),
        "aimed PGD": Kind(0.07, (2, 4, 8), _aimed),
        "MI": Kind(0.06, large, _momentum()),
        "DI": Kind(0.06, large, _momentum(through=diverse_inputs)),
        "TI": Kind(0.07, large, _momentum(translation_invariant, diverse_inputs)),
        "low frequency": Kind(0.04, large, _momentum(low_frequency)),
        "one for all channels": Kind(0.05, every, _momentum(one_for_all_channels)),
        "textured places": Kind(0.03, every, _momentum(textured_only)),
        "through JPEG": Kind(0.05, large, _momentum(through=through_jpeg)),
        "least L2": Kind(0.06, (4,), lambda m, x, y, r, s: DecoupledNorm(30)(m, x, y)),
        "stripes and squares": Kind(0.08, (4, 6, 8, 12), _squares),
        "patch": Kind(0.04, (255,), _patch),
    }  # fmt: skip


def _pgd(model: Model, x: Tensor, label: Tensor, radius: float, seed: int) -> Tensor:
    return pgd(radius, (5, 10, 15)[seed % 3])(model, x, label, seed=seed)


def _stopped(model: Model, x: Tensor, label: Tensor, radius: float, seed: int) -> Tensor:
    attack = GradientAttack(radius, steps=10, step=radius / 4, stops=True)
    return attack(model, x, label, seed=seed)


def _apgd_ce(model: Model, x: Tensor, label: Tensor, radius: float, seed: int) -> Tensor:
    # To the end: where the random start is enough, what an attack that stops gives is plain noise,
    # and noise is benign.
    return AutoPGD(radius, 15, stops=False)(model, x, label, seed=seed)


def _apgd_dlr(model: Model, x: Tensor, label: Tensor, radius: float, seed: int) -> Tensor:
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    # Of fewer classes than four there is no DLR.
    loss = dlr if classes > 3 else cross_entropy
    attack = AutoPGD(radius, 15, loss=loss, stops=False)
    return attack(model, x, label, seed=seed)


def _aimed(model: Model, x: Tensor, label: Tensor, radius: float, seed: int) -> Tensor:
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    draws = Generator().manual_seed(seed)
    target = (label + torch.randint(1, classes, label.shape, generator=draws)) % classes
    attack = GradientAttack(radius, steps=12, step=radius / 5)
    return attack(model, x, target, aimed=True, seed=seed)


def _momentum(shape: Shape | None = None, through: Through | None = None) -> Forger:
    def forge(model: Model, x: Tensor, label: Tensor, radius: float, seed: int) -> Tensor:
        attack = GradientAttack(
            radius, steps=10, step=radius / 8, momentum=1.0, shape=shape, through=through
        )
        return attack(model, x, label, seed=seed)

    return forge


def _squares(model: Model, x: Tensor, label: Tensor, radius: float, seed: int) -> Tensor:
    """Stripes, and squares on them, as random search leaves them: no question is asked."""
    draws = np.random.default_rng(seed)
    rows, channels, height, width = x.shape
    out = x.clone()
    for row in range(rows):
        sign = draws.choice([-1.0, 1.0], (channels, 1, width)).repeat(height, axis=1)
        share = 0.05
        for _ in range(int(draws.integers(0, 120))):
            side = max(1, round((share * height * width) ** 0.5))
            top, left = (int(draws.integers(0, size - side + 1)) for size in (height, width))
            sign[:, top : top + side, left : left + side] = draws.choice(
                [-1.0, 1.0], (channels, 1, 1)
            )
            share = max(0.0025, share * 0.96)
        out[row] += radius * torch.from_numpy(sign).float()
    return out.clamp(0.0, 1.0)


def _patch(model: Model, x: Tensor, label: Tensor, radius: float, seed: int) -> Tensor:
    """A square of any colours at some place."""
    draws = np.random.default_rng(seed)
    mask = torch.zeros(len(x), 1, *x.shape[2:])
    for row in range(len(x)):
        side = min(int(draws.integers(28, 65)), x.shape[2] // 2, x.shape[3] // 2)
        top, left = (int(draws.integers(0, size - side + 1)) for size in x.shape[2:])
        mask[row, :, top : top + side, left : left + side] = 1.0
    start = (1 - mask) * x + mask * torch.from_numpy(draws.random(x.shape)).float()

    def inside(gradient: Tensor, clean: Tensor) -> Tensor:
        return mask * gradient.sign()

    attack = GradientAttack(1.0, steps=20, step=0.08, momentum=0.9, shape=inside)
    return attack(model, start, label, seed=seed)


@dataclass(frozen=True)
class Pairs:
    """Photographs and what was made of them.

    Attributes:
        clean: [N, SIDE, SIDE, 3] uint8, the photographs.
        forged: of the same shape.
        photograph: [N] number of the photograph.
        kind: [N] name of the kind.
        radius: [N] in 255ths.
        network: [N] name of the classifier that was forged.
        side: [N] pixels at which it was.
        fooled: [N] whether the classifier named another class, in eight bits and at that side.

    """

    clean: Pixels
    forged: Pixels
    photograph: npt.NDArray[np.int64]
    kind: npt.NDArray[np.str_]
    radius: npt.NDArray[np.int64]
    network: npt.NDArray[np.str_]
    side: npt.NDArray[np.int64]
    fooled: npt.NDArray[np.bool_]

    def digest(self) -> str:
        """SHA-256 of all pictures, by which what was made of them is known again."""
        total = hashlib.sha256(self.clean.tobytes())
        total.update(self.forged.tobytes())
        return total.hexdigest()


def forge_pairs(
    photographs: Sequence[Path],
    networks: Sequence[Network],
    count: int,
    seed: int,
    folder: Path,
    progress: Callable[[str], None] = lambda line: None,
    part: slice = slice(None),
) -> None:
    """Make forgeries into a folder, a file a batch; what lies there is not made again.

    Args:
        photographs: files, from which crops are drawn evenly.
        networks: classifiers to forge.
        count: of forgeries, at least.
        seed: of every draw; each batch has its own.
        folder: made if it is not there.
        progress: told after each batch.
        part: of the batches, for several processes that share the work.

    """
    folder.mkdir(parents=True, exist_ok=True)
    catalogue = kinds()
    names = tuple(catalogue)
    weights = np.array([catalogue[name].share for name in names])
    shares = np.array([one.share for one in networks])
    batches = -(-count // BATCH)
    for number in range(batches)[part]:
        path = folder / f"{number:05d}.npz"
        if path.exists():
            continue
        rng = np.random.default_rng([seed, number])
        network = networks[int(rng.choice(len(networks), p=shares / shares.sum()))]
        name = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        kind = catalogue[name]
        radius = int(rng.choice(kind.radii))
        side = int(rng.choice(network.sides))
        rows = rng.integers(0, len(photographs), BATCH)
        clean = np.stack([_crop(photographs[row], side, rng) for row in rows])
        x = torch.from_numpy(clean.transpose(0, 3, 1, 2).astype(np.float32) / 255)
        with torch.no_grad():
            label = network.model(x).argmax(dim=1)
        found = kind.forge(network.model, x, label, radius / 255, int(rng.integers(2**31)))
        forged = to_pixels(found)
        with torch.no_grad():
            again = torch.from_numpy(forged.transpose(0, 3, 1, 2).astype(np.float32) / 255)
            fooled = (network.model(again).argmax(dim=1) != label).numpy()
        if side != SIDE:
            how = _HOW[int(rng.integers(len(_HOW)))]
            clean, forged = (
                np.stack([resized(one, SIDE, SIDE, how) for one in part])
                for part in (clean, forged)
            )
        partial = path.with_suffix(".part")
        with partial.open("wb") as file:
            np.savez(
                file, clean=clean, forged=forged, photograph=rows, fooled=fooled,
                about=np.array([name, str(radius), network.name, str(side)]),
            )  # fmt: skip
        partial.rename(path)
        progress(f"{number + 1} of {batches} batches: {name}, {radius}/255, {network.name}, {side}")


def read_pairs(folder: Path) -> Pairs:
    """Read what `forge_pairs` made, in the order of its files."""
    parts: dict[str, list[npt.NDArray[np.generic]]] = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as found:
            rows = len(found["clean"])
            kind, radius, network, side = (str(one) for one in found["about"])
            for name in ("clean", "forged", "photograph", "fooled"):
                parts.setdefault(name, []).append(found[name])
        for name, value in (("kind", kind), ("network", network)):
            parts.setdefault(name, []).append(np.full(rows, value))
        for name, value in (("radius", radius), ("side", side)):
            parts.setdefault(name, []).append(np.full(rows, int(value)))
    return Pairs(**{name: np.concatenate(part) for name, part in parts.items()})


def to_pixels(x: Tensor) -> Pixels:
    """[N, 3, H, W] in [0, 1] to [N, H, W, 3] in eight bits."""
    values = (x * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return np.ascontiguousarray(values.transpose(0, 2, 3, 1))


def crop(path: Path, side: int, rng: np.random.Generator) -> Pixels:
    """A square of a photograph: half the time its middle, as preprocessing takes it, else any."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if min(image.size) > 6 * side:
        image.thumbnail((8 * side, 8 * side), Image.Resampling.LANCZOS)
    shorter = min(image.size)
    if rng.random() < 0.5:
        size = round(shorter * side / (side + 32))
        left, top = (image.width - size) // 2, (image.height - size) // 2
    else:
        size = min(shorter, max(160, round(shorter * rng.uniform(0.4, 1.0))))
        left = int(rng.integers(0, image.width - size + 1))
        top = int(rng.integers(0, image.height - size + 1))
    part = image.crop((left, top, left + size, top + size))
    part = part.resize((side, side), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(part)


def _crop(path: Path, side: int, rng: np.random.Generator) -> Pixels:
    pixels = crop(path, side, rng)
    return handled(pixels, rng) if rng.random() < _HANDLED else pixels
