"""The classifier behind the guard."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

#: Added to a variance before its logarithm.
POOL_FLOOR = 1e-8


class ClassifierOutput(NamedTuple):
    """Logits [N, K] float32 and features by tap, each [N, ...] float32."""

    logits: Tensor
    features: Mapping[str, Tensor]


def pooled(values: Tensor) -> Tensor:
    """[N, C, H, W] to [N, 2 C]: mean, and log of the standard deviation, of each channel."""
    mean = values.mean(dim=(2, 3))
    spread = (values - mean[:, :, None, None]).square().mean(dim=(2, 3))
    return torch.cat([mean, 0.5 * torch.log(spread + POOL_FLOOR)], dim=1)


class Classifier(nn.Module, ABC):
    """An embedded classifier. Normalisation lives in here: it takes images in [0, 1]."""

    num_classes: int

    @property
    @abstractmethod
    def taps(self) -> tuple[str, ...]:
        """Names of the features that `forward` returns, the same on every call."""

    @abstractmethod
    def forward(self, x: Tensor) -> ClassifierOutput:
        """[N, C, H, W] float32 in [0, 1] to logits and features. Eval mode, no dropout."""


class LogitsOnly(nn.Module):
    """A classifier without its features, as attacks take a network: [N, C, H, W] to [N, K]."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits of images in [0, 1]."""
        logits: Tensor = self.classifier(x).logits
        return logits


@runtime_checkable
class Bounded(Protocol):
    """A classifier that can say how far its logits move while its input stays in a box."""

    def leads(
        self, x: Tensor, radius: Tensor | float, label: Tensor, *, rounding: bool = False
    ) -> Tensor:
        """Least lead of a class over each other within an L-infinity radius.

        Args:
            x: [N, C, H, W] in [0, 1].
            radius: one, or [N, 1, 1, 1].
            label: [N], the class that leads.
            rounding: bounds for what a machine computes, and not only for real numbers.

        Returns:
            [N, K]; 0 for the class itself. Where every other is positive, no image within the
            radius has another top class.

        """
