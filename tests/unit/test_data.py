"""Labelled images from disk."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from firewall.errors import ConfigError
from firewall.train.data import load_idx


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


PIXELS = np.arange(2 * 4 * 5, dtype=np.uint8).reshape(2, 4, 5)


def test_idx_gzip_or_not(tmp_path: Path) -> None:
    images, labels = tmp_path / "images.gz", tmp_path / "labels"
    images.write_bytes(gzip.compress(idx(PIXELS)))
    labels.write_bytes(idx(np.array([3, 1])))
    x, y = load_idx(images, labels)
    assert x.shape == (2, 1, 4, 5)
    assert np.array_equal((x[:, 0] * 255).round(), PIXELS)
    assert y.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (b"junk", idx(np.array([1])), "images is not an IDX file"),
        (idx(PIXELS)[:-1], idx(np.array([1, 2])), "images is not an IDX file"),
        (bytes([0, 0, 8, 3, 0]), idx(np.array([1, 2])), "images is not an IDX file"),
        (idx(PIXELS), idx(np.array([1, 2, 3])), "expected one label for 2 images"),
        (idx(np.array([1, 2])), idx(np.array([1, 2])), "expected images [rows, height, width]"),
        (None, idx(np.array([1])), "images cannot be read"),
    ],
)
def test_what_is_no_idx(images: bytes | None, labels: bytes, words: str, tmp_path: Path) -> None:
    if images is not None:
        (tmp_path / "images").write_bytes(images)
    (tmp_path / "labels").write_bytes(labels)
    with pytest.raises(ConfigError) as caught:
        load_idx(tmp_path / "images", tmp_path / "labels")
    assert words in str(caught.value)


def test_a_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(idx(PIXELS))[:-9])
    with pytest.raises(ConfigError, match=r"images\.gz"):
        load_idx(path, path)
