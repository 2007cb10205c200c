"""Many small pictures in one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

#: A picture is enlarged to at least so many pixels.
_SIDE = 56


def write_grid(images: Tensor, path: Path, columns: int) -> None:
    """Draw images in rows.

    Args:
        images: [N, C, H, W] in [0, 1], of 1 or 3 channels.
        path: of the PNG.
        columns: pictures in a row.

    """
    rows, channels, height, width = images.shape
    lines = -(-rows // columns)
    sheet = np.full((lines * (height + 2), columns * (width + 2), channels), 255, np.uint8)
    pixels = (images.clamp(0, 1) * 255).round().byte().numpy().transpose(0, 2, 3, 1)
    for number, one in enumerate(pixels):
        top, left = number // columns * (height + 2) + 1, number % columns * (width + 2) + 1
        sheet[top : top + height, left : left + width] = one
    drawn = Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)
    factor = max(1, -(-_SIDE // height))
    drawn.resize((drawn.width * factor, drawn.height * factor), Image.Resampling.NEAREST).save(path)
