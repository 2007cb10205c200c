"""A folder of images without classes, as translators take it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from firewall.bundle.spec import Spec
from firewall.decoding.decode import open_upright, upright_size
from firewall.decoding.files import ENDINGS, image_files
from firewall.errors import ConfigError, InvalidInput
from firewall.train.folders import fitted, refuse, size_of


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
    files = image_files(path).files
    if not files:
        raise ConfigError(f"{side}.path: {path} holds no image ({', '.join(ENDINGS)})")
    problems = _twice(files, path)
    sizes: dict[tuple[int, int], Path] = {}
    images: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = []
    for file in files:
        name = str(file.relative_to(path))
        try:
            data = file.read_bytes()
            own = upright_size(data, name)
            sizes.setdefault(own, file)
            height, width = (spec.height, spec.width) if spec.height else own
            if min(height, width) < 8 or max(height, width) > 512:
                problems.append(
                    f"{name} is {own[1]} x {own[0]}; sides are 8 to 512, set height and width"
                )
                continue
            images.append(fitted(data, size_of(spec.channels, height, width), name))
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
        except InvalidInput as error:
            problems.append(str(error))
    if not spec.height and len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        problems.append(
            f"{first.relative_to(path)} is {one[1]} x {one[0]}, {second.relative_to(path)} is "
            f"{other[1]} x {other[0]}; set height and width to bring all to one size"
        )
    refuse(problems, side)
    names = tuple(str(one.relative_to(path).with_suffix("")) for one in files)
    # By name, whatever the endings.
    order = sorted(range(len(names)), key=names.__getitem__)
    stacked = np.stack([images[row] for row in order])
    return ImageFolder(torch.from_numpy(stacked), tuple(names[row] for row in order))


def images_at(path: Path) -> tuple[Path, ...]:
    """The images of a folder at any depth, or the one image that it is.

    Raises:
        ConfigError: there is none, or two differ by their ending alone.

    """
    if path.is_file():
        return (path,)
    files = image_files(path).files
    if not files:
        raise ConfigError(f"images: {path} holds no image ({', '.join(ENDINGS)})")
    refuse(_twice(files, path), "images")
    return files


def _twice(files: Sequence[Path], folder: Path) -> list[str]:
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
        image = open_upright(path.read_bytes(), channels, field=str(path))
    except OSError as error:
        raise ConfigError(f"images: {path} cannot be read: {error.strerror}") from error
    except InvalidInput as error:
        raise ConfigError(f"images: {error}") from error
    pixels = np.array(image, np.uint8)
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
