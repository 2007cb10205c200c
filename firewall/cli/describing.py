"""Options that describe a classifier: of `guard`, `attack` and `evaluate` alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firewall.errors import ConfigError

if TYPE_CHECKING:
    from firewall.sources.options import SourceOptions

_GROUP = "Description of the classifier"

Preset = Annotated[
    str | None,
    typer.Option(
        help="How pixels become the input: imagenet (0 to 1, minus mean 0.485,0.456,0.406, over "
        "std 0.229,0.224,0.225), tf (-1 to 1), caffe-bgr (BGR, 0 to 255, minus 104,117,123), "
        "zero-one (0 to 1), none (0 to 255).",
        rich_help_panel=_GROUP,
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        help="Mean of each channel, in the units of --range and the order of --channel-order: "
        "three numbers with commas between, or one for all.",
        rich_help_panel=_GROUP,
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        help="Standard deviation of each channel, in the units of --range.",
        rich_help_panel=_GROUP,
    ),
]
Range = Annotated[
    str | None,
    typer.Option(
        "--range",
        help="Values of black and white before --mean is taken away and --std divides: 0,1 "
        "(default) or 0,255.",
        rich_help_panel=_GROUP,
    ),
]
ChannelOrder = Annotated[
    str | None,
    typer.Option(help="Order of the channels: rgb (default) or bgr.", rich_help_panel=_GROUP),
]
Layout = Annotated[
    str | None,
    typer.Option(
        help="Layout of the input: nchw or nhwc (default: by its sizes).", rich_help_panel=_GROUP
    ),
]
Shape = Annotated[
    str | None,
    typer.Option(
        help="Size of the input as channels,height,width, where the model leaves it open.",
        rich_help_panel=_GROUP,
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        help="Name of the output with the class scores, where there are several.",
        rich_help_panel=_GROUP,
    ),
]
Activation = Annotated[
    str | None,
    typer.Option(
        help="What the class scores are: logits, softmax or sigmoid (default: by their values).",
        rich_help_panel=_GROUP,
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        help="Text file with a class name a line (default: the source's own, else numbers).",
        rich_help_panel=_GROUP,
    ),
]


def numbers(flag: str, text: str | None, counts: tuple[int, ...]) -> tuple[float, ...] | None:
    """Read numbers with commas between.

    Args:
        flag: for errors.
        text: as given; None is not given.
        counts: how many there may be.

    Raises:
        ConfigError: it is something else.

    """
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) not in counts or not all(abs(value) < 1e30 for value in found):
        wanted = " or ".join(map(str, counts))
        raise ConfigError(f"{flag}: {text!r}; expected {wanted} numbers with commas between")
    return found


def word(flag: str, text: str | None, words: dict[str, str]) -> str | None:
    """Read one of some words, in any case; returns what it stands for.

    Raises:
        ConfigError: it is another.

    """
    if text is None:
        return None
    if text.lower() not in words:
        raise ConfigError(f"{flag}: {text!r}; expected one of {', '.join(words)}")
    return words[text.lower()]


def source_options(
    *,
    preset: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    value_range: str | None = None,
    channel_order: str | None = None,
    layout: str | None = None,
    shape: str | None = None,
    output: str | None = None,
    activation: str | None = None,
    labels: Path | None = None,
    **more: Any,
) -> SourceOptions:
    """Read what the flags say of a classifier; `more` is of `SourceOptions` as it is.

    Raises:
        ConfigError: a flag is no such thing, or contradicts another.

    """
    from firewall.sources.options import SourceOptions

    size = None
    if shape is not None:
        sizes = shape.split(",")
        if len(sizes) != 3 or not all(one.strip().isdecimal() and int(one) for one in sizes):
            raise ConfigError(f"--shape: {shape!r}; expected channels,height,width")
        size = tuple(int(one) for one in sizes)
    values: dict[str, Any] = {
        "preset": preset,
        "mean": numbers("--mean", mean, (1, 3, 4)),
        "std": numbers("--std", std, (1, 3, 4)),
        "value_range": numbers("--range", value_range, (2,)),
        "channel_order": word("--channel-order", channel_order, {"rgb": "RGB", "bgr": "BGR"}),
        "layout": word("--layout", layout, {"nchw": "NCHW", "nhwc": "NHWC"}),
        "shape": size,
        "output": output,
        "activation": word(
            "--activation", activation, {one: one for one in ("logits", "softmax", "sigmoid")}
        ),
        "labels": labels,
    }
    return SourceOptions(**values, **more)


def refuse_description(options: SourceOptions, why: str) -> None:
    """Refuse flags that describe a classifier where they do not apply.

    Args:
        options: of the flags.
        why: nothing is to be described.

    Raises:
        ConfigError: one was given.

    """
    from firewall.sources.options import SourceOptions

    plain = SourceOptions()
    names = {"value_range": "range", "channel_order": "channel-order"}
    for field in ("preset", "mean", "std", "value_range", "channel_order", "layout", "shape",
                  "output", "activation"):  # fmt: skip
        if getattr(options, field) != getattr(plain, field):
            raise ConfigError(f"--{names.get(field, field)}: does not apply; {why}")
