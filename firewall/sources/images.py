"""The images by which a guard is made: photographs of the kind that the classifier will see."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firewall.bundle.spec import InputSpec, Preprocessing
from firewall.decoding.decode import Target, decode_to
from firewall.decoding.files import ENDINGS, image_files
from firewall.errors import ConfigError, InvalidInput
from firewall.screening.offline import rows
from firewall.screening.wire_pixels import pixels

#: Pixels of a file of one's own: more than strangers may send.
_MAX_PIXELS = 250_000_000
#: Problems that are listed before "and so many more".
_LISTED = 5


@dataclass(frozen=True)
class Images:
    """Decoded images, none of them twice.

    Attributes:
        pixels: [N, H, W, C] uint8.
        names: of the files, for people.
        folders: [N] name of the folder directly below the one that was named; empty where an image
            lies in none.
        digests: [N] SHA-256 of the decoded pixels.
        warnings: about files that were left out.

    """

    pixels: npt.NDArray[np.uint8]
    names: tuple[str, ...]
    folders: tuple[str, ...]
    digests: tuple[str, ...]
    warnings: tuple[str, ...]


def read_images(
    paths: Sequence[Path], spec: InputSpec, preprocessing: Preprocessing, limit: int
) -> Images:
    """Read files and folders, at any depth, and .npz files with an array `x`.

    Args:
        paths: of files and folders.
        spec: size and channels to which images are brought.
        preprocessing: how.
        limit: images at most; a spread of all of them is taken where there are more.

    Raises:
        ConfigError: there is no image, or most cannot be read.

    """
    files: list[tuple[Path, Path]] = []
    warnings: list[str] = []
    for path in paths:
        if not path.exists():
            raise ConfigError(f"images: {path} does not exist")
        if path.is_dir():
            found = image_files(path)
            files += [(one, path) for one in found.files]
            if found.said:
                warnings.append(f"{path}: {found.said}")
        else:
            files.append((path, path.parent))
    if not files:
        raise ConfigError(f"images: no {', '.join(ENDINGS)} file in {', '.join(map(str, paths))}")
    if len(files) > limit:
        warnings.append(f"{limit} of {len(files)} images are used; --images-limit says how many")
        files = [files[round(n)] for n in np.linspace(0, len(files) - 1, limit)]
    target = Target.of(spec, preprocessing)
    kept: dict[str, tuple[npt.NDArray[np.uint8], str, str]] = {}
    problems: list[str] = []
    count = 0
    for file, root in files:
        name = str(file.relative_to(root))
        parts = file.relative_to(root).parts
        folder = parts[0] if len(parts) > 1 else ""
        try:
            for number, image in enumerate(_decoded(file, target, spec, name)):
                count += 1
                own = name if file.suffix != ".npz" else f"{name}[{number}]"
                digest = hashlib.sha256(image.tobytes()).hexdigest()
                kept.setdefault(digest, (image, own, folder))
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
        except InvalidInput as error:
            problems.append(str(error))
    if count > len(kept):
        warnings.append(f"{count - len(kept)} images are there twice and count once")
    if problems:
        listed = "; ".join(problems[:_LISTED])
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        text = f"{len(problems)} of {len(files)} files cannot be read: {listed}{more}"
        if len(problems) > len(kept):
            raise ConfigError(f"images: {text}")
        warnings.append(text)
    digests = list(kept)[:limit]
    return Images(
        np.stack([kept[one][0] for one in digests]),
        tuple(kept[one][1] for one in digests),
        tuple(kept[one][2] for one in digests),
        tuple(digests),
        tuple(warnings),
    )


def _decoded(
    file: Path, target: Target, spec: InputSpec, name: str
) -> Iterator[npt.NDArray[np.uint8]]:
    """The images [H, W, C] of a file: one, or those of an array.

    An array is of pixels [N, H, W, C] uint8, or of rows as clients send them.
    """
    if file.suffix != ".npz":
        yield decode_to(file.read_bytes(), target, field=name, max_pixels=_MAX_PIXELS)
        return
    prepared = Preprocessing(resize=max(4, min(spec.height, spec.width)))
    for row in rows([file], spec, prepared):
        if row.wire is None:
            raise InvalidInput(name, str(row.error).removeprefix(f"{file}: "))
        if row.pixels is not None:
            yield row.pixels
            continue
        image = pixels(row.wire[None], spec)[0].transpose(1, 2, 0)
        yield np.ascontiguousarray(np.rint(image * 255).astype(np.uint8))


def folder_labels(
    images: Images, labels: Sequence[str]
) -> tuple[npt.NDArray[np.int64] | None, str]:
    """Classes of images by the names of their folders.

    A folder is a class by its name or by its number. Where classes have no names and there are as
    many folders, it is one by its place in the alphabet.

    Args:
        images: that were read.
        labels: names of the classes.

    Returns:
        [N] classes, or None where the folders do not say; and how they say it, for people.

    """
    present = sorted(set(images.folders) - {""})
    if not present:
        return None, ""
    if "" in images.folders:
        return None, "some images lie in no folder, so folders are not taken for classes"
    by_name = {_plain(label): number for number, label in enumerate(labels)}
    numbered = list(labels) == [str(number) for number in range(len(labels))]
    if all(_plain(name) in by_name for name in present):
        numbers = {name: by_name[_plain(name)] for name in present}
        how = "by their folders"
    elif all(name.isdecimal() and int(name) < len(labels) for name in present):
        numbers = {name: int(name) for name in present}
        how = "by their folders"
    elif numbered and len(present) == len(labels):
        numbers = {name: number for number, name in enumerate(present)}
        how = "by their folders in alphabetical order; --labels names the classes"
    else:
        unknown = next((name for name in present if _plain(name) not in by_name), present[0])
        return None, f"folder {unknown!r} is no class, so folders are not taken for classes"
    return np.array([numbers[name] for name in images.folders], np.int64), how


def _plain(name: str) -> str:
    return name.strip().casefold().replace("_", " ").replace("-", " ")
