"""Labelled images from where people have them: folders, IDX, npz, parquet, scikit-learn's digits.

Whatever the source, it becomes [N, C, H, W] uint8 with [N] labels, and is split by the hash of each
image's content: the same image is in the same part wherever and however often it comes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from firewall.bundle.spec import Spec
from firewall.decoding.decode import Target
from firewall.documents import parse_json, read_text
from firewall.errors import ConfigError, InvalidInput
from firewall.train.data import load_idx, load_npz, package_hint
from firewall.train.fit_network import Images
from firewall.train.folders import fitted, read_class_folders, refuse, size_of

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

    @property
    def size(self) -> Target:
        """To which images are brought, in training and in service."""
        return size_of(self.channels, self.height, self.width)


@dataclass(frozen=True)
class Labelled:
    """Images and labels.

    Attributes:
        x: [N, C, H, W] uint8.
        y: [N] int64.
        labels: names of the classes.
        names: of the files, where images are files.
        warnings: what was found when they were read.

    """

    x: npt.NDArray[np.uint8]
    y: npt.NDArray[np.int64]
    labels: tuple[str, ...]
    names: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    def name(self, row: int) -> str:
        """What an image is called in messages."""
        return self.names[row] if self.names else f"row {row}"

    def take(self, rows: npt.NDArray[Any]) -> Labelled:
        """Some rows."""
        names = tuple(self.names[row] for row in rows.tolist()) if self.names else ()
        return Labelled(self.x[rows], self.y[rows], self.labels, names)


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
        raise ConfigError(f"data.path: {path} does not exist{package_hint(path)}")
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
    lines = read_text(index, "data.reviewed").splitlines()
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
            images.append(fitted(inside.read_bytes(), spec.size, name))
            classes.append(labels.index(str(label)))
        except InvalidInput as error:
            problems.append(str(error))
        except (OSError, ValueError):
            problems.append(f"{name} is not a file in the folder that can be read")
    refuse(problems)
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
    found = read_class_folders(path, spec.size)
    return Labelled(found.x, found.y, found.labels, found.names, found.warnings), None


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
        if not isinstance(data, bytes):
            problems.append(f"row {row}: not the bytes of an image file")
            continue
        try:
            x[row] = fitted(data, spec.size, f"row {row}")
        except InvalidInput as error:
            problems.append(str(error))
    refuse(problems)
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
