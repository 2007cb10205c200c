"""Labelled images from where people have them: folders, IDX, npz, parquet, scikit-learn's digits.

Whatever the source, it becomes [N, C, H, W] uint8 with [N] labels, and is split by the hash of each
image's content: the same image is in the same part wherever and however often it comes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import Field

from firewall.bundle.spec import Spec
from firewall.documents import parse_json
from firewall.errors import ConfigError
from firewall.train.data import load_idx, load_npz
from firewall.train.fit_network import Images

#: File endings that are read from folders.
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
#: Problems that are listed before "and so many more".
_LISTED = 5

PARTS = ("train", "selection", "calibration", "test")


class SourceSpec(Spec):
    """`[data]` of a recipe."""

    source: Literal["folder", "idx", "npz", "parquet", "digits"]
    #: The folder or file; of `idx`, the folder of the four files of MNIST's naming.
    path: str = ""
    #: Size to which images of a folder or parquet are brought; of other sources it must fit.
    channels: Literal[1, 3] = 3
    height: int = Field(default=32, ge=8, le=512)
    width: int = Field(default=32, ge=8, le=512)
    #: Only so many images, drawn by hash, in the same shares as all of them; 0 is all.
    rows: int = Field(default=0, ge=0)
    #: Shares of what is not a test set of its own.
    selection: float = Field(default=0.03, gt=0, lt=0.5)
    calibration: float = Field(default=0.07, gt=0, lt=0.5)
    #: A folder of reviewed traffic, or of stored adversarial examples, for training: `index.jsonl`
    #: with a line an image, `{"image": "a.png", "verdict": "reject", "label": "cat"}`. `label` is
    #: what a person sees; lines without one are left out.
    reviewed: str = ""
    #: How often each of them counts.
    repeat: int = Field(default=1, ge=1, le=1000)
    #: Share of the sealed test; ignored where the source has a test set of its own (`idx`).
    test: float = Field(default=0.15, gt=0, lt=0.5)


@dataclass(frozen=True)
class Labelled:
    """Images and labels.

    Attributes:
        x: [N, C, H, W] uint8.
        y: [N] int64.
        labels: names of the classes.

    """

    x: npt.NDArray[np.uint8]
    y: npt.NDArray[np.int64]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: npt.NDArray[Any]) -> Labelled:
        """Some rows."""
        return Labelled(self.x[rows], self.y[rows], self.labels)


def images(one: Labelled) -> Images:
    """The same, as training takes it."""
    return Images(torch.from_numpy(one.x), torch.from_numpy(one.y))


def read(spec: SourceSpec, base: Path) -> tuple[Labelled, Labelled | None]:
    """All images of a source, and its own test set where it has one.

    Args:
        spec: which.
        base: folder from which a relative path counts: the recipe's.

    Raises:
        ConfigError: it cannot be read, or is no data set; every problem of a folder in one error.

    """
    readers: dict[str, Callable[[SourceSpec, Path], tuple[Labelled, Labelled | None]]] = {
        "folder": _folder,
        "idx": _idx,
        "npz": _npz,
        "parquet": _parquet,
        "digits": _digits,
    }
    path = base / spec.path
    if spec.source != "digits" and not path.exists():
        raise ConfigError(f"data.path: {path} does not exist")
    found, test = readers[spec.source](spec, path)
    shape = (spec.channels, spec.height, spec.width)
    for one in (found, test):
        if one is not None and one.x.shape[1:] != shape:
            raise ConfigError(
                f"data: images are {list(one.x.shape[1:])}; [data] says "
                f"{list(shape)} (channels, height, width)"
            )
    if len(found.labels) < 2:
        raise ConfigError(f"data: {len(found.labels)} class in {path}; expected two or more")
    return found, test


def read_reviewed(spec: SourceSpec, base: Path, labels: tuple[str, ...]) -> Labelled | None:
    """Images that a person has labelled, in the quarantine's export format.

    Args:
        spec: which.
        base: folder from which a relative path counts.
        labels: of the classes; names of others are mistakes.

    Returns:
        None where the recipe names none.

    Raises:
        ConfigError: all that is wrong with the folder, together.

    """
    if not spec.reviewed:
        return None
    path = base / spec.reviewed
    index = path / "index.jsonl"
    try:
        lines = index.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.reviewed: {index} cannot be read") from error
    images: list[npt.NDArray[np.uint8]] = []
    classes: list[int] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            body = parse_json(line, "line", error=ConfigError)
            name, label = str(body["image"]), body.get("label")
        except (ConfigError, TypeError, KeyError, AttributeError):
            problems.append(f"index.jsonl, line {number}: expected an object with image and label")
            continue
        if label is None:
            continue
        if str(label) not in labels:
            problems.append(f"index.jsonl, line {number}: label {label!r} is none of the classes")
            continue
        inside = (path / name).resolve()
        try:
            if not inside.is_relative_to(path.resolve()):
                raise ValueError
            images.append(fitted(inside.read_bytes(), spec))
            classes.append(labels.index(str(label)))
        except (OSError, ValueError, Image.DecompressionBombError):
            problems.append(f"{name} is not an image in the folder that can be read")
    _refuse(problems)
    if not images:
        raise ConfigError(f"data.reviewed: {index} has no line with a label")
    return Labelled(np.stack(images), np.array(classes, np.int64), labels)


def with_reviewed(
    parts: dict[str, Labelled], reviewed: Labelled | None, repeat: int
) -> dict[str, Labelled]:
    """Reviewed images join the training part, but for those that another part has as well."""
    if reviewed is None:
        return parts
    kept_apart = {one for part in PARTS[1:] for one in content_hashes(parts[part].x)}
    fresh = [row for row, one in enumerate(content_hashes(reviewed.x)) if one not in kept_apart]
    rows = np.array(fresh * repeat, np.intp)
    train = parts["train"]
    joined = Labelled(
        np.concatenate([train.x, reviewed.x[rows]]),
        np.concatenate([train.y, reviewed.y[rows]]),
        train.labels,
    )
    return parts | {"train": joined}


def content_hashes(x: npt.NDArray[np.uint8]) -> list[str]:
    """SHA-256 of each image's pixels."""
    return [hashlib.sha256(row.tobytes()).hexdigest() for row in x]


def split(spec: SourceSpec, found: Labelled, test: Labelled | None) -> dict[str, Labelled]:
    """Into `train`, `selection`, `calibration` and `test`, by content.

    Images that are in the test set as well are left out of the others.

    Raises:
        ConfigError: a part is empty, or training lacks a class.

    """
    hashes = content_hashes(found.x)
    order = np.array(sorted(range(len(hashes)), key=lambda row: hashes[row]))
    if spec.rows:
        # By the hash's other end: its beginning says which part a row belongs to.
        drawn = sorted(order.tolist(), key=lambda row: hashes[row][::-1])[: spec.rows]
        order = np.array(sorted(drawn, key=lambda row: hashes[row]))
    sealed = set(content_hashes(test.x)) if test is not None else set()
    edges = [spec.selection, spec.calibration, spec.test if test is None else 0.0]
    bounds = np.cumsum(edges)
    rows: dict[str, list[int]] = {part: [] for part in PARTS}
    for row in order.tolist():
        if hashes[row] in sealed:
            continue
        # The first 52 bits as a number in [0, 1): a coin that only the content tosses.
        place = int(hashes[row][:13], 16) / 16**13
        number = int(np.searchsorted(bounds, place, side="right"))
        rows[("selection", "calibration", "test", "train")[number]].append(row)
    parts = {part: found.take(np.array(chosen, np.intp)) for part, chosen in rows.items()}
    if test is not None:
        parts["test"] = test
    for part, one in parts.items():
        if not len(one):
            raise ConfigError(
                f"data: {len(order)} images leave none for {part}; bring more, or raise its share"
            )
    missing = sorted(set(range(len(found.labels))) - set(parts["train"].y.tolist()))
    if missing:
        raise ConfigError(
            f"data: class {found.labels[missing[0]]!r} has no training image; bring more of it"
        )
    return parts


def _folder(spec: SourceSpec, path: Path) -> tuple[Labelled, Labelled | None]:
    """A folder a class, images in it at any depth."""
    if not path.is_dir():
        raise ConfigError(f"data.path: {path} is not a folder")
    classes = sorted(one for one in path.iterdir() if one.is_dir() and one.name[0] != ".")
    files: list[tuple[Path, int]] = []
    problems: list[str] = []
    for number, folder in enumerate(classes):
        inside = sorted(one for one in folder.rglob("*") if one.suffix.lower() in ENDINGS)
        if not inside:
            problems.append(f"{folder.name} holds no image ({', '.join(ENDINGS)})")
        files += [(one, number) for one in inside]
    if not classes:
        raise ConfigError(f"data.path: {path} holds no folders; expected one a class")
    x = np.empty((len(files), spec.channels, spec.height, spec.width), np.uint8)
    for row, (file, _) in enumerate(files):
        try:
            x[row] = fitted(file.read_bytes(), spec)
        except (OSError, ValueError, Image.DecompressionBombError):
            problems.append(f"{file.relative_to(path)} is not an image that can be read")
    _refuse(problems)
    y = np.array([number for _, number in files], np.int64)
    return Labelled(x, y, tuple(folder.name for folder in classes)), None


def fitted(data: bytes, spec: SourceSpec) -> npt.NDArray[np.uint8]:
    """An encoded image at a recipe's size: [C, H, W]; the shorter side fits, the centre is cut."""
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("L" if spec.channels == 1 else "RGB")
    scale = max(spec.width / image.width, spec.height / image.height)
    if scale != 1:
        size = (
            max(spec.width, round(image.width * scale)),
            max(spec.height, round(image.height * scale)),
        )
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - spec.width) // 2, (image.height - spec.height) // 2
    pixels = np.asarray(image.crop((left, top, left + spec.width, top + spec.height)), np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _idx(spec: SourceSpec, path: Path) -> tuple[Labelled, Labelled | None]:
    """The four files of MNIST's naming, with or without gzip."""

    def pair(name: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        files = []
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            there = [path / f"{name}-{kind}{end}" for end in ("", ".gz")]
            existing = [one for one in there if one.exists()]
            if not existing:
                raise ConfigError(f"data.path: {there[0]} (or .gz) does not exist")
            files.append(existing[0])
        x, y = load_idx(*files)
        return (x * 255).round().astype(np.uint8), y

    x, y = pair("train")
    test = pair("t10k")
    labels = tuple(str(number) for number in range(int(max(y.max(), test[1].max())) + 1))
    return Labelled(x, y, labels), Labelled(*test, labels)


def _npz(spec: SourceSpec, path: Path) -> tuple[Labelled, Labelled | None]:
    x, y = load_npz(path, "data.path")
    return _counted((x * 255).round().clip(0, 255).astype(np.uint8), y)


def _parquet(spec: SourceSpec, path: Path) -> tuple[Labelled, Labelled | None]:
    """A table of `image` (bytes of a file, or a struct with `bytes`) and `label` (integers)."""
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise ConfigError(
            "data.source: parquet needs pyarrow; pip install 'robustness-firewall[train]'"
        ) from error
    try:
        table = parquet.read_table(path, columns=["image", "label"])
    except (ArrowInvalid, OSError, KeyError) as error:
        raise ConfigError(
            f"data.path: {path} is no parquet table with columns image and label"
        ) from error
    problems: list[str] = []
    x = np.empty((table.num_rows, spec.channels, spec.height, spec.width), np.uint8)
    for row, image in enumerate(table.column("image").to_pylist()):
        data: Any = image.get("bytes") if isinstance(image, dict) else image
        try:
            x[row] = fitted(data, spec)
        except (OSError, ValueError, TypeError, Image.DecompressionBombError):
            problems.append(f"row {row} is not an image that can be read")
    _refuse(problems)
    return _counted(x, np.array(table.column("label").to_pylist(), np.int64))


def _digits(spec: SourceSpec, path: Path) -> tuple[Labelled, Labelled | None]:
    """1,797 handwritten digits of 8 x 8, inside scikit-learn's wheel."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(
            "data.source: digits needs scikit-learn; pip install 'robustness-firewall[train]'"
        ) from error
    data = load_digits()
    x = (data.images[:, None] * (255 / 16)).round().astype(np.uint8)
    return Labelled(x, data.target.astype(np.int64), tuple("0123456789")), None


def _counted(
    x: npt.NDArray[np.uint8], y: npt.NDArray[np.int64]
) -> tuple[Labelled, Labelled | None]:
    """Data whose classes are numbers from 0."""
    if not len(y):
        raise ConfigError("data: holds no image")
    if y.min() < 0:
        raise ConfigError(f"data: label {y.min()}; expected 0 or more")
    present = np.unique(y)
    if len(present) != y.max() + 1:
        gap = sorted(set(range(int(y.max()))) - set(present.tolist()))[0]
        raise ConfigError(f"data: no image has label {gap}, though labels go up to {y.max()}")
    return Labelled(x, y, tuple(str(number) for number in range(len(present)))), None


def _refuse(problems: list[str]) -> None:
    if problems:
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise ConfigError(f"data: {'; '.join(problems[:_LISTED])}{more}")
