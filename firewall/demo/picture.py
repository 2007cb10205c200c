"""Draws the demo: original, perturbation, forgery, and what was said of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from firewall.errors import ConfigError

#: How much the perturbation is enlarged to be seen at all.
GAIN = 20
_SCALE = 2
_MARGIN = 24
_INK = (24, 24, 27)
_GREEN = (21, 128, 61)
_RED = (185, 28, 28)

Pixels = npt.NDArray[np.uint8]
#: Lines of a caption: text and whether it is good (True), bad (False) or neither.
Caption = list[tuple[str, bool | None]]


def draw(
    path: Path, original: Pixels, forged: Pixels, captions: tuple[Caption, Caption, Caption]
) -> None:
    """Write a PNG of three panels side by side.

    Args:
        path: where.
        original: [H, W, 3] uint8.
        forged: the same shape.
        captions: below the original, the perturbation and the forgery.

    Raises:
        ConfigError: the file cannot be written.

    """
    difference = forged.astype(np.int16) - original.astype(np.int16)
    enlarged = np.clip(128 + GAIN * difference, 0, 255).astype(np.uint8)
    height, width = original.shape[0] * _SCALE, original.shape[1] * _SCALE
    line = 24
    caption_height = line * max(len(caption) for caption in captions) + 12
    sheet = Image.new(
        "RGB",
        (3 * width + 4 * _MARGIN, height + 2 * _MARGIN + caption_height),
        (255, 255, 255),
    )
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=17)
    for number, (pixels, caption) in enumerate(
        zip((original, enlarged, forged), captions, strict=True)
    ):
        left = _MARGIN + number * (width + _MARGIN)
        panel = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(panel, (left, _MARGIN))
        for row, (text, good) in enumerate(caption):
            ink = _INK if good is None else _GREEN if good else _RED
            pen.text((left, _MARGIN + height + 10 + row * line), text, fill=ink, font=font)
    try:
        sheet.save(path, "PNG", optimize=True)
    except OSError as error:
        raise ConfigError(f"--picture: {path} cannot be written: {error.strerror}") from error
