"""The contract of a stage.

A stage is a `torch.nn.Module` that is exported to ONNX with the rest of its guard, so it is a pure
function of its arguments and its buffers. The laws that every registered stage is tested against
(`firewall.testing`): a row's result does not depend on its neighbours; permuting rows permutes
results; inputs are not changed; equal seeds give equal results; black, white and noise give finite
numbers; torch and ONNX agree at batch 1, 2 and 17; a config survives a round trip through JSON and
refuses unknown keys.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict
from torch import Generator, Tensor, nn

from firewall.stages.evidence import Evidence

#: The version of this contract. A plugin states the one it was written for.
API_VERSION = 1

#: `cheap` runs for every row, `expensive` only for rows that the cheap tier doubts.
Tier = Literal["cheap", "expensive"]


class StageConfig(BaseModel):
    """Base of every stage's configuration: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Needs:
    """Which evidence a detector reads. The guard is refused, by name, when it has less.

    Attributes:
        logits: the classifier's logits of the raw batch.
        views: logits (and pixels) of these views; every view of the guard with `all_views`.
        all_views: at least one view, whatever its name.
        features: features tapped from an embedded classifier, by tap.

    """

    logits: bool = False
    views: frozenset[str] = field(default_factory=frozenset)
    all_views: bool = False
    features: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class FitReport:
    """What fitting a stage did: how many rows it saw and figures worth keeping in the manifest."""

    rows: int
    figures: dict[str, float]


@runtime_checkable
class Fittable(Protocol):
    """A stage that learns from clean data before it is compiled."""

    def fit(self, data: Evidence, rng: Generator) -> FitReport:
        """Set the stage's buffers from the evidence of clean images."""
        ...


#: Maps images [N, C, H, W] to a value a row, [N], with a gradient.
RowLoss = Callable[[Tensor], Tensor]


class Forge(Protocol):
    """An attacker who knows whatever a loss knows."""

    def __call__(
        self, x: Tensor, loss: RowLoss, share: float, norm: Literal["linf", "l2"] = "linf"
    ) -> Tensor:
        """Images near others at which a loss is high.

        Args:
            x: [N, C, H, W] in [0, 1].
            loss: of them, a value a row.
            share: of the radius. Of L2, the radius is that of the L-infinity ball's corners.
            norm: of the ball.

        """


@dataclass(frozen=True)
class Examples:
    """Images as they arrive at a service.

    Attributes:
        benign: [M, C, H, W] clean images in [0, 1] after what photographs go through on their way:
            JPEG, noise, resizing, ...
        forged: [L, C, H, W] forgeries of the classifier, of many kinds, saved as they are sent.

    """

    benign: Tensor
    forged: Tensor


@dataclass(frozen=True)
class Lesson:
    """What a stage that learns from forgeries may use, all of it on training data.

    Attributes:
        x: [N, C, H, W] clean images in [0, 1].
        label: [N] their classes.
        radius: L-infinity, of the attacker that the guard is meant for.
        look: images [N, C, H, W] to evidence about them (raw, logits and features of `RAW`), with
            gradients: the classifier behind the guard.
        forge: the attacker.
        examples: makes examples when first asked for, which takes as long as they are many.

    """

    x: Tensor
    label: Tensor
    radius: float
    look: Callable[[Tensor], Evidence]
    forge: Forge
    examples: Callable[[], Examples]


@runtime_checkable
class Learner(Protocol):
    """A stage that learns from clean images and forgeries of them before it is compiled."""

    def learn(self, lesson: Lesson, rng: Generator) -> FitReport:
        """Set the stage's weights. Every draw is from `rng`."""
        ...


@runtime_checkable
class Adopter(Protocol):
    """A stage that owns networks which the recipe trains, its members."""

    @property
    def members(self) -> tuple[str, ...]:
        """Their names in the recipe."""
        ...

    def adopt(self, networks: Mapping[str, nn.Module]) -> None:
        """Take them: each maps [N, C, H, W] in [0, 1] to logits [N, K], frozen."""
        ...


class Denoiser(nn.Module, ABC):
    """Maps an image batch to a cleaner one, which becomes the view of its name."""

    api_version: ClassVar[int]
    Config: ClassVar[type[StageConfig]]

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] float32 in [0, 1] to the same shape, dtype and range."""


class Detector(nn.Module, ABC):
    """Gives each row one statistic: finite, and higher is more suspicious. It never decides."""

    api_version: ClassVar[int]
    Config: ClassVar[type[StageConfig]]
    #: A cheap detector may read the raw image, its logits and its features, but no view.
    tier: ClassVar[Tier]

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """The evidence that `forward` reads."""

    @abstractmethod
    def forward(self, evidence: Evidence) -> Tensor:
        """Evidence about N rows to [N] float32."""


class Ensemble(nn.Module, ABC):
    """Combines the predictions on all views into one."""

    api_version: ClassVar[int]
    Config: ClassVar[type[StageConfig]]

    @abstractmethod
    def forward(self, evidence: Evidence) -> Tensor:
        """Evidence about N rows to [N, K] float32 log-probabilities (each row's exp sums to 1)."""
