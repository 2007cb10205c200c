"""Attacks from Python, on a torch network of one's own.

The value range travels with the network: images outside of it are an error, and a radius is in its
units. Nothing of the network is another afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firewall.attack.apgd import AutoPGD, TargetedAutoPGD
from firewall.attack.gradient import GradientAttack, pgd
from firewall.attack.losses import dlr
from firewall.attack.norms import Norm, check_radius, norm_named
from firewall.errors import ConfigError


@dataclass(frozen=True)
class TorchClassifier:
    """A network, and the images that it takes.

    Attributes:
        network: [N, C, H, W] to logits [N, K], in evaluation mode.
        bounds: least and greatest value of an image, such as (0, 1) or (0, 255).
        mean: of each channel, subtracted from images before the network sees them, in units of
            `bounds`; None where the network normalises by itself.
        std: by which they are divided after that.

    Raises:
        ConfigError: the network is in training mode, or bounds or normalisation cannot be.

    """

    network: nn.Module
    bounds: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        low, high = self.bounds
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError(f"bounds: {self.bounds}; expected (least, greatest)")
        if (self.mean is None) is not (self.std is None):
            raise ConfigError("mean and std belong together; one is missing")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise ConfigError(f"std: {self.std}; expected positive numbers")
        training = [name or "the network" for name, one in self.network.named_modules()
                    if one.training]  # fmt: skip
        if training:
            raise ConfigError(
                f"network: {training[0]} is in training mode, in which the rows of a batch change "
                "each other and statistics move; call .eval() on it first"
            )

    def scaled(self, x: Tensor) -> Tensor:
        """Images of the bounds as images in [0, 1].

        Raises:
            ConfigError: they are no such images.

        """
        low, high = self.bounds
        if x.ndim != 4 or not x.is_floating_point():
            raise ConfigError(f"x: {x.dtype} {list(x.shape)}; expected floats [rows, C, H, W]")
        least, greatest = float(x.min()), float(x.max())
        if not (low <= least and greatest <= high):
            raise ConfigError(
                f"x: values from {least:g} to {greatest:g}; the network's bounds are {low:g} to "
                f"{high:g}. Give images before normalisation, and bounds, mean and std"
            )
        return (x.float() - low) / (high - low)

    def restored(self, x: Tensor) -> Tensor:
        """Images in [0, 1] as images of the bounds."""
        low, high = self.bounds
        return x * (high - low) + low

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [N, K] of images in [0, 1], with gradients."""
        images = self.restored(x)
        if self.mean is not None and self.std is not None:
            shape = (1, -1, 1, 1)
            images = (images - images.new_tensor(self.mean).view(shape)) / images.new_tensor(
                self.std
            ).view(shape)
        logits: Tensor = self.network(images)
        return logits

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No gradient reaches a parameter within; all are as they were afterwards."""
        parameters = list(self.network.parameters())
        before = [one.requires_grad for one in parameters]
        try:
            for one in parameters:
                one.requires_grad_(False)
            yield
        finally:
            for one, required in zip(parameters, before, strict=True):
                one.requires_grad_(required)


def attack(
    name: str,
    classifier: TorchClassifier,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 50,
    seed: int = 0,
) -> Tensor:
    """Attack images, away from their labels.

    Args:
        name: `fgsm`, `bim`, `pgd`, `mi-fgsm`, `apgd`, `apgd-dlr` or `apgd-t`.
        classifier: what is attacked.
        x: [N, C, H, W] within the classifier's bounds.
        y: [N] classes, as whole numbers.
        eps: radius, in units of the bounds: 8/255 for (0, 1), and 8 for (0, 255).
        norm: `linf` or `l2`.
        steps: of iterated attacks.
        seed: of random starts.

    Returns:
        [N, C, H, W] within bounds and radius.

    Raises:
        ConfigError: an unknown name, or images, labels, radius or steps that cannot be.

    """
    low, high = classifier.bounds
    radius = eps / (high - low)
    check_radius(norm, radius, "eps")
    if steps < 1:
        raise ConfigError(f"steps: {steps}; expected 1 or more")
    scaled = classifier.scaled(x)
    with classifier.frozen():
        with torch.no_grad():
            classes = classifier(scaled[:1]).shape[1]
        if y.shape != (len(x),) or y.is_floating_point() or not 0 <= int(y.min()) <= int(
            y.max()
        ) < classes:  # fmt: skip
            raise ConfigError(
                f"y: {y.dtype} {list(y.shape)}; expected {len(x)} classes from 0 to {classes - 1}"
            )
        made = _named(name, norm_named(norm), radius, steps)(
            classifier, scaled, y.long(), seed=seed
        )
    # Rounding may step over the bounds by a hair.
    return classifier.restored(made).clamp(low, high).to(x.dtype)


def _named(name: str, norm: Norm, radius: float, steps: int) -> Callable[..., Tensor]:
    step = 2.5 * radius / steps
    known: dict[str, Callable[..., Tensor]] = {
        "fgsm": GradientAttack(radius, 1, radius, norm=norm),
        "bim": GradientAttack(radius, steps, step, norm=norm),
        "pgd": pgd(radius, steps, norm=norm),
        "mi-fgsm": GradientAttack(radius, steps, step, norm=norm, momentum=1.0),
        "apgd": AutoPGD(radius, steps, norm),
        "apgd-dlr": AutoPGD(radius, steps, norm, loss=dlr),
        "apgd-t": TargetedAutoPGD(radius, steps, norm),
    }
    if name not in known:
        raise ConfigError(f"attack: {name!r}; expected one of {', '.join(known)}")
    return known[name]
