"""Images of folders, decoded as the server decodes them.

What a network is trained on must be what it is asked later: the same orientation, the same colours,
the same size. So the one decoder is used (`firewall.decoding.decode`), and what it refuses is
refused here, by the name of the file.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firewall.decoding.decode import MAX_PIXELS, Target, decode_to
from firewall.decoding.files import ENDINGS, image_files
from firewall.errors import ConfigError, InvalidInput

#: Problems that are listed before "and so many more".
_LISTED = 5
#: Pixels of a file of one's own: more than strangers may send.
_MAX_PIXELS = 10 * MAX_PIXELS
#: Names of folders that are parts of a data set and no classes.
_PARTS = frozenset(
    {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}
)


@dataclass(frozen=True)
class ClassFolders:
    """A folder for each class.

    Attributes:
        x: [N, C, H, W] uint8.
        y: [N] int64.
        labels: names of the classes.
        names: of the files, within the folder.
        warnings: about names and files that were left out.

    """

    x: npt.NDArray[np.uint8]
    y: npt.NDArray[np.int64]
    labels: tuple[str, ...]
    names: tuple[str, ...]
    warnings: tuple[str, ...]


def read_class_folders(path: Path, size: Target) -> ClassFolders:
    """Read a folder for each class, with images at any depth.

    Args:
        path: of the folder.
        size: to which images are brought.

    Raises:
        ConfigError: it is no such folder, or files cannot be read; all problems in one error.

    """
    if not path.is_dir():
        raise ConfigError(f"data.path: {path} is not a folder")
    classes = sorted(
        (one for one in path.iterdir() if one.is_dir() and not one.name.startswith(".")),
        key=lambda one: one.name,
    )
    if not classes:
        raise ConfigError(f"data.path: {path} holds no folders; expected one a class")
    problems = list(_same_when_composed(one.name for one in classes))
    warnings: list[str] = []
    files: list[tuple[Path, int]] = []
    for number, folder in enumerate(classes):
        found = image_files(folder)
        if not found.files:
            problems.append(
                f"{folder.name} holds no image ({', '.join(ENDINGS)})"
                + (f"; {found.said}" if found.said else "")
            )
        elif found.said:
            warnings.append(f"class {folder.name!r}, {found.said}")
        files += [(one, number) for one in found.files]
    splits = [one.name for one in classes if one.name.lower() in _PARTS]
    if splits:
        warnings.insert(
            0,
            f"{', '.join(map(repr, splits))} are taken for classes; if they are parts of a data "
            "set, name the folder in which the classes lie",
        )
    x = np.empty((len(files), size.channels, size.height, size.width), np.uint8)
    for row, (file, _) in enumerate(files):
        name = str(file.relative_to(path))
        try:
            x[row] = fitted(file.read_bytes(), size, name)
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
        except InvalidInput as error:
            problems.append(str(error))
    refuse(problems)
    return ClassFolders(
        x,
        np.array([number for _, number in files], np.int64),
        tuple(folder.name for folder in classes),
        tuple(str(file.relative_to(path)) for file, _ in files),
        tuple(warnings),
    )


def fitted(data: bytes, size: Target, name: str) -> npt.NDArray[np.uint8]:
    """Decode an image as the server would, at a size: [C, H, W].

    Args:
        data: the file.
        size: to which the shorter side is brought, and the centre cut.
        name: that errors say.

    Raises:
        InvalidInput: it is no image that the server would take.

    """
    pixels = decode_to(data, size, field=name, max_pixels=_MAX_PIXELS)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def size_of(channels: int, height: int, width: int) -> Target:
    """The size of a recipe's images, as the bundles of recipes ask for it when they serve."""
    return Target(width, height, channels, max(4, min(height, width)))


def refuse(problems: list[str], where: str = "data") -> None:
    """Raise all problems in one error, if there are any.

    Raises:
        ConfigError: there are.

    """
    if problems:
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise ConfigError(f"{where}: {'; '.join(problems[:_LISTED])}{more}")


def _same_when_composed(names: Iterable[str]) -> Iterable[str]:
    """Classes whose names look alike: one wrote a letter and its accent as two characters."""
    seen: dict[str, str] = {}
    for name in names:
        composed = unicodedata.normalize("NFC", name)
        if composed in seen:
            yield f"the folders {seen[composed]!a} and {name!a} have the same name in other bytes"
        seen[composed] = name
