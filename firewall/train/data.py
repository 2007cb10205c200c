"""Labelled images from disk."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.errors import ConfigError


def load_npz(
    path: Path, flag: str = "--data"
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Images `x` and labels `y` of an .npz file; `flag` is named in errors.

    Returns:
        x as [N, C, H, W] float32 in [0, 1] (from that, or from [N, H, W, C] or [N, H, W] uint8),
        and y as [N] int64.

    Raises:
        ConfigError: the file cannot be read, or holds something else.

    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in ("x", "y") if name not in arrays]
            if missing:
                raise ConfigError(f"{flag}: {path} holds no array named {missing[0]!r}")
            x, y = arrays["x"], arrays["y"]
    except OSError as error:
        raise ConfigError(f"{flag}: {path} cannot be read: {error.strerror}") from error
    except (
        ValueError, EOFError, NotImplementedError, RuntimeError, AttributeError, TypeError,
        zipfile.BadZipFile,
    ) as error:  # fmt: skip
        # A .npy file is opened as an array, which is no context.
        raise ConfigError(
            f"{flag}: {path} is not an .npz file of plain arrays, as "
            "numpy.savez(path, x=images, y=labels) writes it"
        ) from error
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise ConfigError(f"{flag}, y: {y.dtype} {list(y.shape)}; expected integers [rows]")
    if len(x) != len(y):
        raise ConfigError(f"{flag}, y: shape [{len(y)}]; expected one label for {len(x)} rows")
    return _images(x, flag), y.astype(np.int64)


def load_idx(images: Path, labels: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """A pair of IDX files, as of MNIST and Fashion-MNIST; gzip is opened.

    Returns:
        x as [N, 1, H, W] float32 in [0, 1], y as [N] int64.

    Raises:
        ConfigError: a file cannot be read, is no IDX file of bytes, or they do not fit together.

    """
    pixels, classes = _idx(images), _idx(labels)
    if pixels.ndim != 3:
        raise ConfigError(f"{images}: {pixels.ndim} axes; expected images [rows, height, width]")
    if classes.shape != (len(pixels),):
        raise ConfigError(
            f"{labels}: shape {list(classes.shape)}; expected one label for {len(pixels)} images"
        )
    x = pixels[:, None].astype(np.float32) / np.float32(255)
    return x, classes.astype(np.int64)


def package_hint(path: Path) -> str:
    """Which package brings a data set that is not there, for the end of a sentence."""
    parts = path.parts
    if parts[:4] == ("/", "usr", "share", "datasets") and len(parts) > 4:
        return f"; Debian's package dataset-{parts[4]} brings it"
    return ""


def _idx(path: Path) -> npt.NDArray[np.uint8]:
    """An IDX file of bytes: two zeros, type 8, the number of axes, their sizes, the values."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror or error}{package_hint(path)}"
        ) from error
    except (EOFError, zlib.error) as error:
        raise ConfigError(f"{path} is a damaged gzip file") from error
    wrong = ConfigError(f"{path} is not an IDX file of bytes")
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise wrong
    head = 4 + 4 * data[3]
    shape = np.frombuffer(data[4:head], ">u4").tolist() if len(data) >= head else []
    if not shape or len(data) - head != math.prod(shape):
        raise wrong
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def _images(x: npt.NDArray[Any], flag: str) -> npt.NDArray[np.float32]:
    if x.dtype == np.uint8:
        x = x[..., None] if x.ndim == 3 else x
        if x.ndim == 4:
            return np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
    elif x.ndim == 4 and np.issubdtype(x.dtype, np.floating):
        return np.ascontiguousarray(x, np.float32)
    raise ConfigError(
        f"{flag}, x: {x.dtype} {list(x.shape)}; expected floats [rows, channels, height, width] in "
        "[0, 1] or uint8 [rows, height, width, channels]"
    )
