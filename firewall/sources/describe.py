"""Bring options and hints together: what clients send, and what the classifier answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from firewall.bundle.spec import InputSpec, Preprocessing
from firewall.documents import read_text
from firewall.errors import ConfigError
from firewall.protocol.tensors import TensorInfo
from firewall.sources.options import (
    Hints,
    Layout,
    Normalisation,
    SourceOptions,
    reordered,
)
from firewall.validation import describe

#: Channels that an image may have.
CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Size:
    """Layout and size of a classifier's input."""

    layout: Layout
    channels: int
    height: int
    width: int


def input_size(tensor: TensorInfo, options: SourceOptions, hints: Hints) -> Size:
    """Find layout and size of an input from its declared shape and from what is said of it.

    Args:
        tensor: as declared; sizes of -1 are open, the first is the batch.
        options: of the owner.
        hints: of the source.

    Raises:
        ConfigError: it is no batch of images, something contradicts it, or stays open.

    """
    shape = list(tensor.shape)
    said = f"input {tensor.name!r} takes {_shown(shape)}"
    if not shape:
        # Some servers leave a dynamic shape out of their description.
        shape = [-1, -1, -1, -1]
    if len(shape) != 4:
        raise ConfigError(
            f"{said}; expected images, [rows, channels, height, width] or [rows, height, width, "
            "channels]"
        )
    layout = _layout(said, shape, options)
    channels, height, width = shape[1:] if layout == "NCHW" else (shape[3], *shape[1:3])
    wanted: tuple[int | None, int | None, int | None] = (None, None, None)
    if options.shape is not None:
        wanted = options.shape
    elif hints.size is not None:
        wanted = (None, *hints.size)
    flag = "--shape" if options.shape is not None else hints.source
    found: list[int] = []
    for name, declared, told in zip(
        ("channels", "height", "width"), (channels, height, width), wanted, strict=True
    ):
        if declared < 1 and told is None and name == "channels":
            told = 3
        if declared < 1 and told is None:
            raise ConfigError(
                f"{said}, whose {name} is open; name the size with --shape "
                "channels,height,width, for example --shape 3,224,224"
            )
        if told is not None and declared > 0 and told != declared:
            if options.shape is not None:
                raise ConfigError(f"{flag}: {name} {told}; {said}")
            told = declared
        found.append(declared if declared > 0 else told or 0)
    if found[0] not in CHANNELS:
        raise ConfigError(f"{said}: {found[0]} channels; expected 1, 3 or 4")
    return Size(layout, found[0], found[1], found[2])


def _layout(said: str, shape: list[int], options: SourceOptions) -> Layout:
    first, last = shape[1], shape[3]
    if options.layout is not None:
        channels = first if options.layout == "NCHW" else last
        if channels > 0 and channels not in CHANNELS:
            raise ConfigError(f"--layout: {options.layout} does not fit; {said}")
        return options.layout
    nchw, nhwc = first in CHANNELS, last in CHANNELS
    if nchw and not nhwc:
        return "NCHW"
    if nhwc and not nchw:
        return "NHWC"
    if nchw and nhwc:
        raise ConfigError(f"{said}, which may be either layout; add --layout NCHW or NHWC")
    if first < 1 and last < 1:
        if options.shape is not None:
            return "NCHW"
        raise ConfigError(
            f"{said}, whose sizes are open; name them with --shape channels,height,width, and "
            "--layout NHWC where the channels come last"
        )
    # One of them is a size that no channels have; the other is open.
    return "NCHW" if first < 1 else "NHWC"


def _shown(shape: list[int]) -> str:
    return "[" + ", ".join("any" if size < 1 else str(size) for size in shape) + "]"


def normalisation_of(
    tensor: TensorInfo, options: SourceOptions, hints: Hints
) -> Normalisation | None:
    """Find how images become the input; None where nobody says it.

    Raises:
        ConfigError: what is said contradicts the datatype.

    """
    normalisation = options.normalisation or hints.normalisation
    if tensor.datatype == "UINT8":
        given = options.normalisation
        if given is not None and (given.mean is not None or (given.low, given.high) != (0, 255)):
            raise ConfigError(
                f"input {tensor.name!r} takes UINT8, which are pixels from 0 to 255; leave "
                "--preset, --mean, --std and --range out"
            )
        normalisation = Normalisation(high=255.0)
    if normalisation is None:
        return None
    return reordered(normalisation, options.channel_order or normalisation.channel_order)


def spec_of(tensor: TensorInfo, size: Size, normalisation: Normalisation) -> InputSpec:
    """The description of an input under a normalisation.

    Raises:
        ConfigError: they do not fit one another.

    """
    span = normalisation.high - normalisation.low
    body: dict[str, Any] = {
        "name": tensor.name,
        "layout": size.layout,
        "channel_order": normalisation.channel_order if size.channels == 3 else "RGB",
        "datatype": tensor.datatype,
        "channels": size.channels,
        "height": size.height,
        "width": size.width,
    }
    mean, std = normalisation.mean, normalisation.std
    if mean is None or std is None:
        body |= {"low": normalisation.low, "high": normalisation.high}
    else:
        for flag, values in (("--mean", mean), ("--std", std)):
            if len(values) not in (1, size.channels):
                raise ConfigError(
                    f"{flag}, or the preset or source that says it: {len(values)} values; the "
                    f"input has {size.channels} channels"
                )
        mean, std = (
            values * size.channels if len(values) == 1 else values for values in (mean, std)
        )
        # In units of the image batch, where black is 0 and white is 1.
        body["mean"] = [(value - normalisation.low) / span for value in mean]
        body["std"] = [value / span for value in std]
    try:
        return InputSpec.model_validate(body)
    except ValidationError as error:
        raise ConfigError(f"input {tensor.name!r}: {describe(error)}") from error


def preprocessing(size: Size, options: SourceOptions, hints: Hints) -> Preprocessing:
    """Describe how encoded images become rows: by flags, by the source, else the plain centre."""
    fit = options.fit or hints.fit or "crop"
    side = min(size.height, size.width)
    if fit == "squash":
        return Preprocessing(resize=max(4, size.height, size.width), fit=fit)
    resize = hints.resize or side
    if hints.resize is not None and hints.size is not None:
        # The same part of an image, where the owner names another size.
        resize = round(hints.resize * side / min(hints.size))
    if options.resize is not None:
        resize = options.resize
        if resize < side:
            raise ConfigError(
                f"--resize: {resize}; the centre that is cropped has {side} pixels, so expected "
                f"{side} or more"
            )
    return Preprocessing(resize=max(4, resize), fit=fit)


def options_of(spec: InputSpec) -> SourceOptions:
    """Say of another file what is known of an input: a stand-in takes what a classifier takes.

    Datatype and layout are left to the file.
    """
    if spec.mean is not None and spec.std is not None:
        return SourceOptions(mean=spec.mean, std=spec.std, channel_order=spec.channel_order)
    return SourceOptions(value_range=(spec.low, spec.high), channel_order=spec.channel_order)


def label_count(options: SourceOptions) -> int | None:
    """How many classes the owner says that there are; None where nothing is said."""
    return None if options.labels is None else len(_names(options.labels))


def read_labels(options: SourceOptions, hints: Hints, classes: int) -> tuple[str, ...]:
    """Names of the classes: from the file, from the source, else numbers.

    Raises:
        ConfigError: their number is not that of the classes.

    """
    if options.labels is not None:
        names = _names(options.labels)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"--labels: {options.labels} names {twice[0]!r} twice")
        if len(names) != classes:
            raise ConfigError(
                f"--labels: {options.labels} has {len(names)} names; the classifier has {classes} "
                "classes"
            )
        return names
    if hints.labels is not None and len(hints.labels) == classes:
        return hints.labels
    return tuple(str(number) for number in range(classes))


def _names(path: Path) -> tuple[str, ...]:
    lines = read_text(path, "--labels").splitlines()
    return tuple(line.strip() for line in lines if line.strip())
