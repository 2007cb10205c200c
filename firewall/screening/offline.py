"""Images on disk, screened without a server. Imports no torch."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.bundle.spec import InputSpec, Preprocessing
from firewall.decoding.decode import decode_image
from firewall.decoding.files import ENDINGS, image_files
from firewall.decoding.pixels import pixels_hash
from firewall.errors import InvalidInput
from firewall.screening.live import LiveGuard
from firewall.screening.preprocess import check_values, to_wire
from firewall.screening.verdict import Decision


@dataclass(frozen=True)
class Row:
    """An image of a source, as a client would send it, or the reason why it cannot be sent.

    `pixels` [H, W, C] is what was decoded; None where a file held values and no 8-bit pixels.
    """

    path: str
    wire: npt.NDArray[Any] | None
    error: str | None = None
    pixels: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Screened:
    """The guard's decision on an image. `probability` is of the top class, in [0, 1]."""

    path: str
    decision: Decision
    index: int
    probability: float
    #: [H, W, C], as screened; None where a file held values and no 8-bit pixels.
    pixels: npt.NDArray[np.uint8] | None = None

    @property
    def pixels_sha256(self) -> str | None:
        """Hash of the screened pixels, see `pixels_hash`."""
        return None if self.pixels is None else pixels_hash(self.pixels)


def rows(paths: Sequence[Path], spec: InputSpec, preprocessing: Preprocessing) -> Iterator[Row]:
    """Read images, folders of images (recursively, in order of name), or .npz files with `x`.

    `x` is either [N, H, W, C] uint8 pixels or a batch as clients send it. A file that cannot be
    read becomes a row with an error, so that the others are still screened.
    """
    for path in paths:
        if path.is_dir():
            inner = image_files(path)
            if not inner.files:
                said = f"a folder without {', '.join(ENDINGS)} files; {inner.said}".rstrip("; ")
                yield Row(str(path), None, said)
            yield from rows(inner.files, spec, preprocessing)
            continue
        try:
            if path.suffix.lower() == ".npz":
                for number, (wire, pixels) in enumerate(_arrays(path, spec)):
                    yield Row(f"{path}[{number}]", wire, pixels=pixels)
            else:
                pixels = decode_image(path.read_bytes(), spec, preprocessing, field=str(path))
                yield Row(str(path), to_wire(pixels[None], spec)[0], pixels=pixels)
        except OSError as error:
            yield Row(str(path), None, error.strerror or "cannot be read")
        except InvalidInput as error:
            yield Row(str(path), None, str(error))


def screen(guard: LiveGuard, source: Iterator[Row], batch: int = 8) -> Iterator[Screened | Row]:
    """Screen a stream of rows in batches; rows with an error pass through, in their place."""
    waiting: list[Row] = []
    for row in source:
        if row.wire is None:
            yield from _screen(guard, waiting)
            waiting = []
            yield row
            continue
        waiting.append(row)
        if len(waiting) == batch:
            yield from _screen(guard, waiting)
            waiting = []
    yield from _screen(guard, waiting)


def _screen(guard: LiveGuard, waiting: list[Row]) -> Iterator[Screened]:
    if not waiting:
        return
    wire = np.stack([row.wire for row in waiting if row.wire is not None])
    answer = guard.screen(wire, [guard.plan("local") for _ in waiting])
    probabilities = np.exp(answer.log_probabilities)
    for number, row in enumerate(waiting):
        top = int(probabilities[number].argmax())
        yield Screened(
            row.path,
            answer.decisions[number],
            top,
            float(probabilities[number, top]),
            row.pixels,
        )


def _arrays(
    path: Path, spec: InputSpec
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.uint8] | None]]:
    """Rows of a file as clients send them, with their pixels where the file holds pixels."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "x" not in arrays:
                raise InvalidInput(str(path), "holds no array named 'x'")
            x = arrays["x"]
    except (
        ValueError, EOFError, NotImplementedError, RuntimeError, AttributeError, TypeError,
        zipfile.BadZipFile,
    ) as error:  # fmt: skip
        # A .npy file is opened as an array, which is no context.
        raise InvalidInput(str(path), "not an .npz file of plain arrays") from error
    if x.ndim == 4 and x.dtype == np.uint8 and x.shape[1:] == (
        spec.height, spec.width, spec.channels
    ):  # fmt: skip
        yield from zip(to_wire(x, spec), x, strict=True)
        return
    wanted = {"UINT8": "uint8", "FP16": "float16", "FP32": "float32"}[spec.datatype]
    if x.ndim != 4 or x.shape[1:] != spec.shape or x.dtype.name not in (wanted, "float64"):
        raise InvalidInput(
            str(path),
            f"x is {x.dtype} {list(x.shape)}; expected {wanted} [rows, "
            f"{', '.join(str(size) for size in spec.shape)}] or uint8 [rows, {spec.height}, "
            f"{spec.width}, {spec.channels}]",
        )
    wire = np.ascontiguousarray(x, wanted)
    if len(wire):
        check_values(wire, spec, f"{path}, x")
    for row in wire:
        yield row, None
