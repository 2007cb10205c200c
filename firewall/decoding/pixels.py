"""Pixels that were screened: their hash, and a file of them without loss."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image


def pixels_hash(pixels: npt.NDArray[np.uint8]) -> str:
    """Hash the pixels that a guard screened, so that another program can compare its own.

    Args:
        pixels: [H, W, C] uint8, after decoding, resizing and cropping.

    Returns:
        SHA-256 in hex, of the ASCII text `HxWxC:` (such as `224x224x3:`) and then the bytes, row by
        row from the top, pixel by pixel from the left, channel by channel.

    """
    height, width, channels = pixels.shape
    digest = hashlib.sha256(f"{height}x{width}x{channels}:".encode())
    digest.update(pixels.tobytes())
    return digest.hexdigest()


def to_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode pixels [H, W, C], C = 1, 3 or 4, as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_png(pixels: npt.NDArray[np.uint8], folder: Path) -> Path:
    """Write pixels [H, W, C], C = 1, 3 or 4, as `folder/<hash>.png`.

    The same pixels have the same name, so that a file that exists is left as it is.
    """
    path = folder / f"{pixels_hash(pixels)}.png"
    if not path.exists():
        path.write_bytes(to_png(pixels))
    return path
