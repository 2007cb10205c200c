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
    font = ImageFont.load_default(size=17)
    wrapped = [_wrapped(caption, font, width) for caption in captions]
    caption_height = line * max(len(caption) for caption in wrapped) + 12
    sheet = Image.new(
        "RGB",
        (3 * width + 4 * _MARGIN, height + 2 * _MARGIN + caption_height),
        (255, 255, 255),
    )
    pen = ImageDraw.Draw(sheet)
    for number, (pixels, caption) in enumerate(
        zip((original, enlarged, forged), wrapped, strict=True)
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


def _wrapped(
    caption: Caption, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> Caption:
    """Break lines that are wider than a panel, between words."""
    lines: Caption = []
    for text, good in caption:
        line = ""
        for word in text.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append((line, good))
                longer = word
            line = longer
        lines.append((line, good))
    return lines
