"""Image files of a folder: the one rule by which every command finds them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from firewall.errors import ConfigError

#: Endings of files that are read, in any case.
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class ImageFiles:
    """What a folder holds.

    Attributes:
        files: images, in order of their paths.
        left_out: numbers of files with other endings, by ending.

    """

    files: tuple[Path, ...]
    left_out: Counter[str]

    @property
    def said(self) -> str:
        """What was left out, as `left out: 3 .txt, 1 .gif`; empty where nothing was."""
        if not self.left_out:
            return ""
        ordered = sorted(self.left_out.items(), key=lambda one: (-one[1], one[0]))
        counts = ", ".join(f"{count} {ending}" for ending, count in ordered)
        return f"left out: {counts}"


def image_files(folder: Path) -> ImageFiles:
    """Find the images of a folder at any depth.

    Names that begin with a dot, and all that lies below them, are never data: editors, version
    control, file managers and archives of other systems write them. Links to folders are followed,
    but not into a folder that they lie in.

    Args:
        folder: to look into.

    Raises:
        ConfigError: a folder cannot be read.

    """
    files: list[Path] = []
    left_out: Counter[str] = Counter()
    for path in _files(folder, ()):
        ending = path.suffix.lower()
        if ending in ENDINGS:
            files.append(path)
        else:
            left_out[ending or "without ending"] += 1
    return ImageFiles(tuple(sorted(files)), left_out)


def _files(folder: Path, inside: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    try:
        own = folder.stat()
        identity = (own.st_dev, own.st_ino)
        if identity in inside:
            return
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror}") from error
    for entry in found:
        path = folder / entry.name
        if entry.is_dir():
            yield from _files(path, (*inside, identity))
        else:
            # Devices, sockets and links that lead nowhere fail by name when they are read.
            yield path
