"""What a guard is made of, as data: read by the assembler, written into the manifest."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

StageName = str
NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,63}$"


class Spec(BaseModel):
    """Base: frozen, unknown keys refused, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class InputSpec(Spec):
    """What clients send.

    The image batch x in [0, 1] is (wire - low) / (high - low), or wire * std + mean by channel
    when `mean` and `std` are given; they are in the wire's order of channels, x is always RGB.
    """

    name: str = Field(default="input", min_length=1, max_length=128)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    channel_order: Literal["RGB", "BGR"] = "RGB"
    datatype: Literal["UINT8", "FP16", "FP32"] = "FP32"
    channels: Literal[1, 3, 4]
    height: int = Field(ge=4, le=4096)
    width: int = Field(ge=4, le=4096)
    low: float = 0.0
    high: float = 1.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.channel_order == "BGR" and self.channels != 3:
            raise ValueError(f"channel_order BGR takes 3 channels, not {self.channels}")
        if not self.low < self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.datatype == "UINT8" and (self.low, self.high) != (0.0, 255.0):
            raise ValueError("UINT8 inputs are 0 to 255: low = 0 and high = 255")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std are given together or not at all")
        if self.mean is not None and self.std is not None:
            if not len(self.mean) == len(self.std) == self.channels:
                raise ValueError(
                    f"mean and std need one entry for each of {self.channels} channels"
                )
            if min(self.std) <= 0:
                raise ValueError("every std must be positive")
            if self.datatype == "UINT8":
                raise ValueError("UINT8 inputs take low and high, not mean and std")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one row on the wire."""
        if self.layout == "NCHW":
            return (self.channels, self.height, self.width)
        return (self.height, self.width, self.channels)


class TensorSpec(Spec):
    """A tensor of the classifier's answer. `shape` is of one row; -1 is any size."""

    name: str = Field(min_length=1, max_length=128)
    datatype: str = Field(pattern=r"^(BOOL|U?INT(8|16|32|64)|FP(16|32|64))$")
    shape: tuple[int, ...] = Field(max_length=8)


class ScoreSpec(Spec):
    """How the classifier answers its class scores, beside their name.

    With one value a row (a binary head) the classes are two, and the value is the second one's.
    """

    #: What the values are: logits; probabilities that sum to 1; or probabilities of each class.
    activation: Literal["logits", "softmax", "sigmoid"] = "logits"
    datatype: Literal["FP16", "FP32", "FP64"] = "FP32"
    #: Of one row, as clients see it; None is (classes,).
    shape: tuple[int, ...] | None = Field(default=None, max_length=4)


class Preprocessing(Spec):
    """How an encoded image becomes a row: resize (bicubic), then crop the centre.

    An image that already has the model's height and width is taken pixel for pixel.
    """

    #: Pixels of the shorter side before the crop.
    resize: int = Field(ge=4, le=8192)
    #: `squash` resizes to the model's height and width at once, whatever the proportions.
    fit: Literal["crop", "squash"] = "crop"


class StageSpec(Spec):
    """One stage: the name by which the guard knows it, the plugin, and its validated config."""

    kind: Literal["denoiser", "detector", "ensemble"]
    name: StageName = Field(pattern=NAME_PATTERN)
    plugin: str = Field(min_length=1, max_length=128)
    config: dict[str, Any] = Field(default_factory=dict)


class GuardSpec(Spec):
    """All stages, in the order in which their statistics appear."""

    stages: tuple[StageSpec, ...] = Field(max_length=64)

    @model_validator(mode="after")
    def _unique(self) -> Self:
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two stages are named {name!r}")
        if "raw" in names:
            raise ValueError("the name 'raw' belongs to the batch as it came")
        if len(self.of("ensemble")) > 1:
            raise ValueError("a guard has at most one ensemble")
        return self

    def of(self, kind: str) -> tuple[StageSpec, ...]:
        """The stages of one kind."""
        return tuple(stage for stage in self.stages if stage.kind == kind)
