"""`[augment]` of a recipe: the generator, how it learns, and how its images join the mix.

```toml
[augment]
rows = 60_000               # generated, before the screen
ratios = [0.3, 0.7]         # shares of each batch that are tried; 0 always is
smoothing = 0.1             # of the labels of generated rows

[augment.gan]
steps = 20_000
```
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from firewall.bundle.spec import Spec
from firewall.generate.attributes import AttributeName
from firewall.generate.augment import Augmentation
from firewall.generate.losses import LossName
from firewall.generate.normalisation import Normalisation
from firewall.generate.private import PrivateSpec


class GanSpec(Spec):
    """A conditional image GAN."""

    #: What the players minimise; `firewall/generate/losses.py` says when to take which.
    loss: LossName = "non-saturating"
    #: Of real labels, one-sided: for `non-saturating`, `minimax` and `least-squares`, where D
    #: becomes sure of itself.
    smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    #: Steps of the generator.
    steps: int = Field(default=20_000, ge=1, le=10_000_000)
    #: Images of a step.
    batch: int = Field(default=64, ge=4, le=65_536)
    #: Steps of D for each of G: more where D must stay near its optimum; dearer.
    ratio: int = Field(default=1, ge=1, le=100)
    #: Learning rates; D's may be larger (Heusel et al. 2017, arXiv:1706.08500).
    rate: float = Field(default=2e-4, gt=0, le=1)
    rate_discriminator: float = Field(default=2e-4, gt=0, le=1)
    #: Of Adam; its first one is 0.
    beta: float = Field(default=0.99, ge=0, lt=1)
    #: Length of a code.
    latent: int = Field(default=64, ge=1, le=4096)
    #: Channels of the outermost layers.
    width: int = Field(default=32, ge=4, le=1024)
    width_discriminator: int = Field(default=32, ge=4, le=1024)
    #: `batch`; `virtual` where rows must not depend on each other; `none`.
    norm: Normalisation = "batch"
    #: `spectral`, or `none` with `r1`.
    norm_discriminator: Normalisation = "none"
    #: Weight of D's squared gradient on real images: the surest way to a calm game. 0 is without.
    r1: float = Field(default=1.0, ge=0, le=1e4)
    #: The same on generated images; for `relativistic`.
    r2: float = Field(default=0.0, ge=0, le=1e4)
    #: Both are computed each so many steps of D, and weigh as much more (Karras et al. 2020).
    lazy: int = Field(default=16, ge=1, le=1000)
    #: In both players' steps: for data of few images.
    augment: tuple[Augmentation, ...] = ()
    #: Weight of a loss by which D names the class of real images and G is to have its own named
    #: rightly (AC-GAN, Odena et al. 2017, arXiv:1610.09585): classes become clearer, and what lies
    #: between them rarer. 0 is without.
    auxiliary: float = Field(default=0.0, ge=0, le=100)
    #: Half-life of the averaged generator, in images: that one is kept.
    average: float = Field(default=20_000, gt=0)
    #: Differential privacy for each training image, which costs much of the quality; for data
    #: sets that are to be handed on.
    private: PrivateSpec | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.norm == "spectral":
            raise ValueError("norm 'spectral' is for the discriminator; use norm_discriminator")
        if self.smoothing and self.loss in ("hinge", "relativistic"):
            raise ValueError(f"smoothing {self.smoothing:g}; {self.loss!r} has no labels")
        if (self.r1 or self.r2) and self.norm_discriminator in ("batch", "virtual"):
            raise ValueError(
                f"r1, r2: a gradient penalty is about each row alone, norm_discriminator "
                f"{self.norm_discriminator!r} mixes them"
            )
        if self.private is not None:
            self._private()
        return self

    def _private(self) -> None:
        """Whether real rows are seen by the noised gradient alone."""
        leaks = {
            "r1": bool(self.r1),
            "r2": bool(self.r2),
            "auxiliary": bool(self.auxiliary),
            "loss": self.loss == "relativistic",
            "norm": self.norm == "virtual",
            "norm_discriminator": self.norm_discriminator != "none",
        }
        wrong = [name for name, one in leaks.items() if one]
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)}: with [private], real images may be seen by one gradient a "
                "row alone; set r1, r2 and auxiliary 0, another loss than 'relativistic', another "
                "norm than 'virtual' and norm_discriminator 'none'"
            )


class ScreenSpec(Spec):
    """`[augment.screen]`: which generated images may join."""

    #: Least probability that a plain classifier gives the class that was asked for; 0 does not ask.
    confidence: float = Field(default=0.8, ge=0, le=1)
    #: Share of other real images that lie nearer to a training image than a copy's limit.
    copies: float = Field(default=0.01, ge=0, lt=1)


class AugmentSpec(Spec):
    """Generated images beside real ones."""

    #: `gaussian`: a normal distribution for each class, which a GAN has to better.
    source: Literal["gan", "gaussian"] = "gan"
    gan: GanSpec = GanSpec()
    #: Images to generate, before the screen.
    rows: int = Field(default=60_000, ge=1, le=100_000_000)
    #: Shares of each batch that are generated: one network is trained with each and one with none,
    #: and the best on selection data is kept.
    ratios: tuple[float, ...] = (0.3, 0.7)
    #: None leaves the images as they come.
    screen: ScreenSpec | None = ScreenSpec()
    #: Share of `rows` that are drawn as the class's rarer side of `attribute`, of a GAN.
    rare: float = Field(default=0.0, ge=0, lt=1)
    #: `bright`: what is not background is bright; `large`: it fills much of the image; `contrast`.
    attribute: AttributeName = "bright"
    #: Of the labels of generated rows alone.
    smoothing: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if not self.ratios or any(not 0 < ratio < 1 for ratio in self.ratios):
            raise ValueError("ratios: expected shares between 0 and 1; none at all is always tried")
        if self.rare and self.source != "gan":
            raise ValueError(f"rare {self.rare:g}: codes can be moved of source 'gan' alone")
        return self
