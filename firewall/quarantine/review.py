"""Export reviewed rows as training data: the folder that a recipe's `[data] reviewed` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from firewall.bundle.spec import InputSpec
from firewall.errors import ConfigError
from firewall.private_files import make_private_folder, open_private
from firewall.quarantine.store import Store


def to_pixels(wire: npt.NDArray[Any], spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Convert a row as clients send it, [*spec.shape], to pixels [H, W, C], rounded."""
    x = wire.astype(np.float32)
    if spec.layout == "NCHW":
        x = x.transpose(1, 2, 0)
    if spec.mean is not None and spec.std is not None:
        x = x * np.asarray(spec.std, np.float32) + np.asarray(spec.mean, np.float32)
    else:
        x = (x - np.float32(spec.low)) / np.float32(spec.high - spec.low)
    pixels: npt.NDArray[np.uint8] = (x.clip(0, 1) * 255).round().astype(np.uint8)
    return pixels


def write_image(wire: npt.NDArray[Any], spec: InputSpec, path: Path) -> None:
    """Write a row as PNG, with mode 0600.

    Raises:
        ConfigError: the file cannot be written.

    """
    pixels = to_pixels(wire, spec)
    try:
        with open_private(path, "wb") as file:
            image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
            image.save(file, format="png")
    except OSError as error:
        raise ConfigError(f"--out: {path} cannot be written: {error.strerror}") from error


def export(store: Store, spec: InputSpec, model: str, folder: Path) -> int:
    """Write the labelled rows of a model, images and `index.jsonl`; returns their number.

    Args:
        store: the quarantine.
        spec: input of the model.
        model: name of the model.
        folder: a new or empty folder, which gets mode 0700.

    Raises:
        ConfigError: the folder cannot be written, or is not empty.
        InvalidInput: an image is gone or damaged.

    """
    try:
        make_private_folder(folder)
        if any(folder.iterdir()):
            raise ConfigError(f"--out: {folder} is not empty; name a new folder")
    except OSError as error:
        raise ConfigError(f"--out: {folder} cannot be written: {error.strerror}") from error
    lines: list[str] = []
    for record in store.labelled():
        if record.model != model:
            continue
        name = f"{record.id:08d}.png"
        write_image(store.image(record), spec, folder / name)
        lines.append(
            json.dumps(
                {
                    "image": name,
                    "verdict": record.verdict,
                    "label": record.label,
                    "reviewer": record.reviewer,
                    "request_id": record.request_id,
                },
                allow_nan=False,
            )
        )
    try:
        with open_private(folder / "index.jsonl", "w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
    except OSError as error:
        raise ConfigError(f"--out: {folder} cannot be written: {error.strerror}") from error
    return len(lines)
