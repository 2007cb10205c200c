"""The classifier behind the guard."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from torch import Tensor, nn


class ClassifierOutput(NamedTuple):
    """Logits [N, K] float32 and features by tap, each [N, ...] float32."""

    logits: Tensor
    features: Mapping[str, Tensor]


class Classifier(nn.Module, ABC):
    """An embedded classifier. Normalisation lives in here: it takes images in [0, 1]."""

    #: Names of the features that `forward` returns, the same on every call.
    taps: ClassVar[tuple[str, ...]]
    num_classes: int

    @abstractmethod
    def forward(self, x: Tensor) -> ClassifierOutput:
        """[N, C, H, W] float32 in [0, 1] to logits and features. Eval mode, no dropout."""
