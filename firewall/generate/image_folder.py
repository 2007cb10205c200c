"""A folder of images without classes, as translators take it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from firewall.bundle.spec import Spec
from firewall.errors import ConfigError
from firewall.train.sources import ENDINGS, SourceSpec, fitted

_LISTED = 5


class FolderSpec(Spec):
    """`[first]` and `[second]`."""

    path: str = Field(min_length=1)
    channels: Literal[1, 3] = 3
    #: Size to which images are brought; 0 takes them as they are, and then all must be alike.
    height: int = Field(default=0, ge=0, le=512)
    width: int = Field(default=0, ge=0, le=512)


@dataclass(frozen=True)
class ImageFolder:
    """Images in order of their names.

    Attributes:
        x: [N, C, H, W] uint8.
        names: paths within the folder, without their endings.

    """

    x: Tensor
    names: tuple[str, ...]


def read_folder(spec: FolderSpec, base: Path, side: str) -> ImageFolder:
    """Read a folder, at any depth.

    Args:
        spec: which.
        base: folder from which a relative path counts.
        side: of a translation, for messages.

    Raises:
        ConfigError: it holds no images, some cannot be read, or sizes differ and none is set; all
            of it together.

    """
    path = base / spec.path
    if not path.is_dir():
        raise ConfigError(f"{side}.path: {path} is not a folder")
    if bool(spec.height) != bool(spec.width):
        raise ConfigError(
            f"{side}: height {spec.height} and width {spec.width}; set both, or neither"
        )
    files = sorted(one for one in path.rglob("*") if one.suffix.lower() in ENDINGS)
    if not files:
        raise ConfigError(f"{side}.path: {path} holds no image ({', '.join(ENDINGS)})")
    problems = _twice(files, path)
    sizes: dict[tuple[int, int], Path] = {}
    images: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = []
    for file in files:
        try:
            data = file.read_bytes()
            with Image.open(file) as opened:
                own = (opened.height, opened.width)
            sizes.setdefault(own, file)
            height, width = (spec.height, spec.width) if spec.height else own
            if min(height, width) < 8 or max(height, width) > 512:
                problems.append(
                    f"{file.relative_to(path)} is {own[1]} x {own[0]}; sides are 8 to 512, set "
                    "height and width"
                )
                continue
            fit = SourceSpec(source="folder", channels=spec.channels, height=height, width=width)
            images.append(fitted(data, fit))
        except (OSError, ValueError, Image.DecompressionBombError):
            problems.append(f"{file.relative_to(path)} is not an image that can be read")
    if not spec.height and len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        problems.append(
            f"{first.relative_to(path)} is {one[1]} x {one[0]}, {second.relative_to(path)} is "
            f"{other[1]} x {other[0]}; set height and width to bring all to one size"
        )
    if problems:
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise ConfigError(f"{side}: {'; '.join(problems[:_LISTED])}{more}")
    names = tuple(str(one.relative_to(path).with_suffix("")) for one in files)
    # By name, whatever the endings.
    order = sorted(range(len(names)), key=names.__getitem__)
    stacked = np.stack([images[row] for row in order])
    return ImageFolder(torch.from_numpy(stacked), tuple(names[row] for row in order))


def image_files(path: Path) -> list[Path]:
    """The images of a folder at any depth, or the one image that it is.

    Raises:
        ConfigError: there is none, or two differ by their ending alone.

    """
    if path.is_file():
        return [path]
    files = sorted(one for one in path.rglob("*") if one.suffix.lower() in ENDINGS)
    if not files:
        raise ConfigError(f"images: {path} holds no image ({', '.join(ENDINGS)})")
    problems = _twice(files, path)
    if problems:
        raise ConfigError(f"images: {'; '.join(problems[:_LISTED])}")
    return files


def _twice(files: list[Path], folder: Path) -> list[str]:
    """Images of one name: they would be one pair, or be written over each other."""
    seen: dict[str, Path] = {}
    problems: list[str] = []
    for file in files:
        name = str(file.relative_to(folder).with_suffix(""))
        if name in seen:
            problems.append(
                f"{seen[name].relative_to(folder)} and {file.relative_to(folder)} have one name"
            )
        seen[name] = file
    return problems


def read_image(path: Path, channels: int) -> ImageFolder:
    """One image, as a folder of one.

    Raises:
        ConfigError: it cannot be read.

    """
    try:
        with Image.open(path) as opened:
            image = opened.convert("L" if channels == 1 else "RGB")
        pixels = np.array(image, np.uint8)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ConfigError(f"images: {path} is not an image that can be read") from error
    shaped = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return ImageFolder(torch.from_numpy(np.ascontiguousarray(shaped)[None]), (path.stem,))


def write_image(image: Tensor, path: Path) -> None:
    """[C, H, W] in [0, 1] as PNG, with the folders that it needs.

    Raises:
        ConfigError: it cannot be written.

    """
    pixels = (image.clamp(0, 1) * 255).round().byte().numpy().transpose(1, 2, 0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path)
    except OSError as error:
        raise ConfigError(f"--out: {path} cannot be written: {error.strerror}") from error
