"""Networks that are trained here. Each is an embedded classifier with taps."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from firewall.bundle.spec import Spec
from firewall.guard.classifier import Classifier, ClassifierOutput
from firewall.guard.interval import Interval, affine, box, margins
from firewall.stages import with_surrogate
from firewall.train.crown import backward_leads


class NetworkSpec(Spec):
    """`[network]` of a recipe."""

    #: `cnn`: four convolutions. `shallow`: two, each with stride 2: interval bounds loosen with
    #: every layer.
    architecture: Literal["cnn", "shallow"] = "cnn"
    #: Channels of the first layer; later ones have twice as many.
    width: int = Field(default=32, ge=4, le=1024)
    #: Units of the layer before the last.
    hidden: int = Field(default=256, ge=8, le=8192)
    #: Levels to which each value is rounded before anything else; 0 does not round. The rounding is
    #: passed by gradients (BPDA): it is no secret, and hides nothing.
    levels: int = Field(default=0, ge=0, le=256)
    #: First weights: torch's own, or small enough for intervals to keep their width from layer to
    #: layer (Shi et al. 2021, arXiv:2103.17268), without which interval training hardly begins.
    initialisation: Literal["torch", "interval"] = "torch"


class Cnn(Classifier):
    """Two or four convolutions and two linear layers, for images from 8 x 8 on; no batch norm.

    Batch statistics of clean and adversarial images differ, and without them a row's answer cannot
    depend on its neighbours in training either.
    """

    taps: ClassVar[tuple[str, ...]] = ("early", "late", "penultimate")

    def __init__(self, spec: NetworkSpec, channels: int, side: tuple[int, int], classes: int):
        """Random weights, from torch's generator.

        Args:
            spec: sizes.
            channels: of the image.
            side: height and width of the image.
            classes: of the answer.

        """
        super().__init__()
        width = spec.width
        self.levels = spec.levels
        self.num_classes = classes

        def halves(before: int, after: int) -> nn.Conv2d:
            return nn.Conv2d(before, after, 4, stride=2, padding=1)

        def keeps(before: int, after: int) -> nn.Conv2d:
            return nn.Conv2d(before, after, 3, padding=1)

        if spec.architecture == "shallow":
            layers = [halves(channels, width), halves(width, 2 * width)]
        else:
            layers = [
                keeps(channels, width),
                halves(width, 2 * width),
                keeps(2 * width, 2 * width),
                halves(2 * width, 2 * width),
            ]
        self.convolutions = nn.ModuleList(layers)
        height, breadth = side[0] // 2 // 2, side[1] // 2 // 2
        self.hidden = nn.Linear(2 * width * height * breadth, spec.hidden)
        self.last = nn.Linear(spec.hidden, classes)
        if spec.initialisation == "interval":
            every: list[nn.Conv2d | nn.Linear] = [*layers, self.hidden, self.last]
            for layer in every:
                assert layer.bias is not None
                nn.init.normal_(layer.weight, 0.0, math.sqrt(2 * math.pi) / layer.weight[0].numel())
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> ClassifierOutput:
        """[N, C, H, W] in [0, 1] to logits and the means of two layers' channels."""
        if self.levels:
            x = with_surrogate(x, self._rounded, lambda v: v)
        y = x
        means: list[Tensor] = []
        for layer in self.convolutions:
            y = F.relu(layer(y))
            means.append(y.mean(dim=(2, 3)))
        early, late = means[len(means) // 2 - 1], means[-1]
        y = F.relu(self.hidden(y.flatten(1)))
        return ClassifierOutput(self.last(y), {"early": early, "late": late, "penultimate": y})

    def leads(
        self, x: Tensor, radius: Tensor | float, label: Tensor, *, rounding: bool = False
    ) -> Tensor:
        """Interval bounds, as `Bounded` has them."""
        within = box(x, radius, rounding=rounding)
        if self.levels:
            within = within.through(self._rounded)
        for layer in self.convolutions:
            assert isinstance(layer, nn.Conv2d)
            within = affine(within, layer, rounding=rounding).through(F.relu)
        within = Interval(within.lower.flatten(1), within.upper.flatten(1))
        within = affine(within, self.hidden, rounding=rounding).through(F.relu)
        return margins(within, self.last, label, rounding=rounding)

    def crown_leads(
        self, x: Tensor, radius: Tensor | float, label: Tensor
    ) -> tuple[Tensor, Tensor]:
        """[N, K] by CROWN-IBP, for training, and [N, K] by intervals."""
        within = box(x, radius)
        if self.levels:
            within = within.through(self._rounded)
        layers = [layer for layer in self.convolutions if isinstance(layer, nn.Conv2d)]
        return backward_leads(layers, self.hidden, self.last, within, label)

    def _rounded(self, x: Tensor) -> Tensor:
        steps = self.levels - 1
        return torch.round(x * steps) / steps


def make_network(spec: NetworkSpec, shape: tuple[int, int, int], classes: int, seed: int) -> Cnn:
    """A network with weights drawn from a seed, and no other generator touched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Cnn(spec, shape[0], shape[1:], classes)
