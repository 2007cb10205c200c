"""What the owner of a classifier says about it; everything may be left open."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from firewall.errors import ConfigError

Activation = Literal["logits", "softmax", "sigmoid"]
ChannelOrder = Literal["RGB", "BGR"]
Layout = Literal["NCHW", "NHWC"]
Fit = Literal["crop", "squash"]


@dataclass(frozen=True)
class Normalisation:
    """How pixels become what the classifier takes: ((low + p (high - low)) - mean) / std.

    Attributes:
        low: value of a black pixel before the mean is taken away.
        high: value of a white pixel.
        mean: of each channel in the order of `channel_order`, in units of low and high.
        std: likewise.
        channel_order: of the classifier's input.

    """

    low: float = 0.0
    high: float = 1.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channel_order: ChannelOrder = "RGB"


#: Names under which a model may be served.
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
#: Conventions of training frameworks, by the name that `--preset` takes.
PRESETS: dict[str, Normalisation] = {
    "imagenet": Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "tf": Normalisation(low=-1.0, high=1.0),
    "caffe-bgr": Normalisation(
        high=255.0, mean=(104.0, 117.0, 123.0), std=(1.0, 1.0, 1.0), channel_order="BGR"
    ),
    "zero-one": Normalisation(),
    "none": Normalisation(high=255.0),
}
#: What each of them is, for help and errors.
PRESET_TEXTS = {
    "imagenet": "0 to 1, minus mean 0.485,0.456,0.406, over std 0.229,0.224,0.225 (torchvision)",
    "tf": "-1 to 1 (TensorFlow, Inception, Lite)",
    "caffe-bgr": "BGR, 0 to 255 minus 104,117,123 (Caffe)",
    "zero-one": "0 to 1",
    "none": "0 to 255, the pixels themselves",
}


@dataclass(frozen=True)
class SourceOptions:
    """Flags of `firewall guard` that describe a classifier. None leaves it to the source.

    Attributes:
        preset: name of a normalisation in `PRESETS`.
        mean: of each channel, in units of `value_range`.
        std: of each channel, in units of `value_range`.
        value_range: values of black and white before mean and std.
        channel_order: RGB or BGR.
        layout: NCHW or NHWC.
        shape: channels, height and width of an image.
        input: name of the input with the images.
        output: name of the output with the class scores.
        activation: what the scores are.
        labels: file with a class name a line.
        resize: pixels of an image's shorter side before the crop.
        fit: whether images are cropped to the shape, or squashed into it.
        checkpoint: weights of a timm model.
        surrogate: ONNX file of a stand-in with the same classes, for a served model.
        name: under which the bundle serves the model.

    """

    preset: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    value_range: tuple[float, float] | None = None
    channel_order: ChannelOrder | None = None
    layout: Layout | None = None
    shape: tuple[int, int, int] | None = None
    input: str | None = None
    output: str | None = None
    activation: Activation | None = None
    labels: Path | None = None
    resize: int | None = None
    fit: Fit | None = None
    checkpoint: Path | None = None
    surrogate: Path | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.preset is not None and self.preset not in PRESETS:
            raise ConfigError(f"--preset: {self.preset!r}; expected one of {', '.join(PRESETS)}")
        own = [
            flag
            for flag, value in (("--mean", self.mean), ("--std", self.std),
                                ("--range", self.value_range))
            if value is not None
        ]  # fmt: skip
        if self.preset is not None and own:
            raise ConfigError(f"{own[0]}: --preset {self.preset} says it already; leave one out")
        if self.name is not None and not re.fullmatch(NAME_PATTERN, self.name):
            raise ConfigError(
                f"--name: {self.name!r}; expected letters, digits, dots, hyphens and underscores"
            )
        if self.resize is not None and self.fit == "squash":
            raise ConfigError("--resize: --squash resizes to the input at once; leave one out")
        if self.std is not None and min(self.std) <= 0:
            raise ConfigError("--std: every value must be positive")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ConfigError("--range: the first value must be below the second")

    @property
    def normalisation(self) -> Normalisation | None:
        """The normalisation that the flags spell out; None where they say nothing about it."""
        order = self.channel_order
        if self.preset is not None:
            preset = PRESETS[self.preset]
            if order is None or order == preset.channel_order:
                return preset
            return reordered(preset, order)
        if self.mean is None and self.std is None and self.value_range is None:
            return None
        low, high = self.value_range or (0.0, 1.0)
        mean, std = self.mean, self.std
        if mean is not None and std is None:
            std = (1.0,) * len(mean)
        if std is not None and mean is None:
            mean = (0.0,) * len(std)
        return Normalisation(low, high, mean, std, order or "RGB")


def reordered(normalisation: Normalisation, order: ChannelOrder) -> Normalisation:
    """The same normalisation of each colour for the other order of channels."""
    if normalisation.channel_order == order:
        return normalisation
    mean, std = normalisation.mean, normalisation.std
    return Normalisation(
        normalisation.low,
        normalisation.high,
        None if mean is None else mean[::-1],
        None if std is None else std[::-1],
        order,
    )


#: An image as decoded, to the input of a model.
Reference = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Hints:
    """What a source itself says: timm's configuration, a Hugging Face folder, file metadata.

    Attributes:
        normalisation: of its input; None where it does not say.
        size: height and width of its input.
        resize: pixels of an image's shorter side before the crop.
        fit: whether images are cropped or squashed.
        labels: names of its classes.
        reference: what the source's own preprocessing makes of an image [H, W, 3] uint8:
            [C, H', W'] float32, as its model takes it; None where it cannot be asked.
        source: where this comes from, for people.
        warnings: what could not be followed.

    """

    normalisation: Normalisation | None = None
    size: tuple[int, int] | None = None
    resize: int | None = None
    fit: Fit | None = None
    labels: tuple[str, ...] | None = None
    reference: Reference | None = None
    source: str = ""
    warnings: tuple[str, ...] = field(default=())
