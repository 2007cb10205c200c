"""Image files of folders: found by one rule, decoded by one decoder, counted and questioned."""

from __future__ import annotations

import io
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from firewall.bundle.spec import InputSpec, Preprocessing
from firewall.decoding.files import image_files
from firewall.errors import ConfigError, InvalidInput
from firewall.screening.offline import rows
from firewall.screening.preprocess import to_wire
from firewall.train.folders import fitted, size_of
from firewall.train.inventory import take_stock
from firewall.train.sources import PARTS, Labelled, SourceSpec, read, split
from tests.support.image_files import animation, encoded

SIDE = 24
SPEC = SourceSpec(source="folder", height=SIDE, width=SIDE)
SERVED = InputSpec(channels=3, height=SIDE, width=SIDE, layout="NHWC", datatype="UINT8", high=255.0)

FILES: dict[str, bytes] = {
    **{f"{mode}.png": encoded(40, 31, "PNG", mode) for mode in ("RGB", "L", "P", "1", "I;16")},
    **{f"{mode}.jpg": encoded(40, 31, "JPEG", mode) for mode in ("RGB", "L", "CMYK")},
    "alpha.png": encoded(40, 31, "PNG", "RGBA"),
    "progressive.jpg": encoded(40, 31, "JPEG", progressive=True),
    "large.jpg": encoded(700, 500, "JPEG"),
    "thin.webp": encoded(90, 12, "WEBP"),
    "two-frames.png": animation("PNG"),
    "phone.jpg": encoded(40, 31, "MPO"),
    "cut.jpg": encoded(40, 31, "JPEG")[:400],
    "none.png": b"",
    "text.jpg": b"no picture",
}


@pytest.mark.parametrize("name", FILES)
def test_training_sees_what_serving_sees(name: str, tmp_path: Path) -> None:
    """The same pixels, or for both the same sentence that names the file."""
    path = tmp_path / name
    path.write_bytes(FILES[name])
    [served] = rows([path], SERVED, Preprocessing(resize=SIDE))
    try:
        trained = fitted(FILES[name], size_of(3, SIDE, SIDE), str(path))
    except InvalidInput as error:
        assert served.wire is None
        assert served.error == str(error)
        assert name in str(error)
        return
    assert served.wire is not None
    assert np.array_equal(trained.transpose(1, 2, 0), served.wire)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_network_is_trained_on_upright_pictures(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(SIDE, SIDE, kind, exif=exif.tobytes(), **({"lossless": True} if kind == "WEBP"
                                                              else {}))  # fmt: skip
    with Image.open(io.BytesIO(data)) as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    assert np.array_equal(fitted(data, SPEC.size, "x").transpose(1, 2, 0), upright)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(FILES)).flatmap(
        lambda name: st.tuples(
            st.just(FILES[name]),
            st.integers(0, max(0, len(FILES[name]) - 1)),
            st.binary(max_size=9),
        )
    )
)
def test_any_bytes_give_an_image_or_one_sentence_that_names_the_file(
    damage: tuple[bytes, int, bytes],
) -> None:
    data, place, new = damage
    try:
        found = fitted(data[:place] + new + data[place + len(new) :], SPEC.size, "some/file.png")
        assert found.shape == (3, SIDE, SIDE)
    except InvalidInput as error:
        assert str(error).startswith("some/file.png: ")
        assert "\n" not in str(error)


def write(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(zlib.crc32(name.encode())).integers(
            0, 256, (20, 30, 3), np.uint8
        )
        pixels[0, 0] = number
        Image.fromarray(pixels).save(path, "PNG")


def test_what_is_data_in_a_folder(tmp_path: Path) -> None:
    write(
        tmp_path / "photos", "b.png", "a.JPG", "deep/er/c.webp", ".hidden.png", ".git/x.png",
        "._a.jpg", "deep/.thumbs/y.png",
    )  # fmt: skip
    write(tmp_path / "elsewhere", "linked.png")
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    # Into a folder that it lies in, twice.
    (tmp_path / "photos" / "deep" / "up").symlink_to(tmp_path / "photos", target_is_directory=True)
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path, target_is_directory=True)
    for name in ("notes.txt", "more.txt", "old.bmp", "README"):
        (tmp_path / "photos" / name).write_text("")
    found = image_files(tmp_path / "photos")
    names = [str(path.relative_to(tmp_path / "photos")) for path in found.files]
    assert names == ["a.JPG", "b.png", "deep/er/c.webp", "link/linked.png"]
    assert found.said == "left out: 2 .txt, 1 .bmp, 1 without ending"


def pair(tmp_path: Path, *more: str) -> Path:
    write(
        tmp_path, *(f"cat/{n}.png" for n in range(40)), *(f"dog/{n}.png" for n in range(40)), *more
    )
    return tmp_path


def stock(folder: Path) -> Any:
    found, test = read(SPEC, folder)
    return take_stock(found, split(SPEC, found, test))


def test_images_are_counted_by_class_and_part(tmp_path: Path) -> None:
    counted = stock(pair(tmp_path))
    assert sum(sum(counts) for counts in counted.counts.values()) == 80
    assert all(len(counted.counts[part]) == 2 for part in PARTS)
    lines = counted.lines()
    assert lines[0].split() == ["class", "train", "selection", "calibration", "test"]
    assert lines[1].split()[0] == "cat"
    assert sum(int(cell) for cell in lines[3].split()[1:]) == 80


def same_content(folder: Path) -> None:
    data = (folder / "cat" / "3.png").read_bytes()
    (folder / "dog" / "copy.png").write_bytes(data)
    (folder / "dog" / "copy2.png").write_bytes(data)


def other_files(folder: Path) -> None:
    (folder / "dog" / "notes.txt").write_text("")


def splits(folder: Path) -> None:
    (folder / "cat").rename(folder / "train")
    (folder / "dog").rename(folder / "val")


def few_dogs(folder: Path) -> None:
    for number in range(2, 40):
        (folder / "dog" / f"{number}.png").unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (same_content, "2 images have the content of another one with another label, such as "
                       "cat/3.png (cat) and dog/copy.png (dog)"),
        (other_files, "class 'dog', left out: 1 .txt"),
        (splits, "'train', 'val' are taken for classes; if they are parts of a data set"),
        (few_dogs, "have no image in"),
    ],
)  # fmt: skip
def test_what_looks_like_a_mistake_is_said(
    change: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    change(pair(tmp_path))
    found, test = read(SPEC, tmp_path)
    try:
        warnings = take_stock(found, split(SPEC, found, test)).warnings
    except ConfigError:
        assert change is few_dogs
        return
    assert any(words in one for one in warnings), warnings


def test_gross_imbalance_is_said() -> None:
    x = np.random.default_rng(0).integers(0, 256, (610, 3, 16, 16), np.uint8)
    found = Labelled(x, (np.arange(610) >= 600).astype(np.int64), ("many", "few"))
    parts = {part: found.take(np.arange(610)) for part in PARTS}
    [warning] = take_stock(found, parts).warnings
    assert warning.startswith("class 'many' has 600 training images and 'few' has 10")


def test_folders_that_differ_by_composition_only_are_refused(tmp_path: Path) -> None:
    name = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    write(tmp_path, f"{name}/1.png", f"{unicodedata.normalize('NFD', name)}/2.png")
    with pytest.raises(ConfigError, match="have the same name in other bytes"):
        read(SPEC, tmp_path)


def test_damaged_files_are_named_together(tmp_path: Path) -> None:
    pair(tmp_path)
    (tmp_path / "cat" / "3.png").write_bytes(FILES["cut.jpg"])
    (tmp_path / "dog" / "7.png").write_bytes(FILES["I;16.png"])
    with pytest.raises(ConfigError) as caught:
        read(SPEC, tmp_path)
    assert "cat/3.png: a damaged or truncated image" in str(caught.value)
    assert "dog/7.png: 16 bits a channel; expected 8 bits a channel" in str(caught.value)


def test_what_training_makes_of_a_file_is_what_clients_send(tmp_path: Path) -> None:
    """By way of a whole data set: rotated photographs, and the wire of a bundle of that recipe."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for label in ("cat", "dog"):
        for number in range(30):
            path = tmp_path / label / f"{number}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encoded(60 + number, 40, "JPEG", exif=exif.tobytes()))
    found, _ = read(SPEC, tmp_path)
    served = [row.wire for row in rows([tmp_path], SERVED, Preprocessing(resize=SIDE))]
    trained = to_wire(np.ascontiguousarray(found.x.transpose(0, 2, 3, 1)), SERVED)
    assert np.array_equal(trained, np.stack([one for one in served if one is not None]))
