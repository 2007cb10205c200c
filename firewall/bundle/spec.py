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
    when `mean` and `std` are given.
    """

    name: str = Field(default="input", min_length=1, max_length=128)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
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


class Preprocessing(Spec):
    """How an encoded image becomes a row: resize the shorter side (bicubic), crop the centre.

    An image that already has the model's height and width is taken pixel for pixel.
    """

    resize: int = Field(ge=4, le=8192)


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
