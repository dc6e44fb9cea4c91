"""idx files: valid ones are read exactly, and every kind of damage is reported with the file."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from helpers.idx_files import idx_bytes

from delt_hpc.data.catalog import idx
from delt_hpc.data.catalog.sources import DEBIAN
from delt_hpc.errors import UserError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
PIXELS = np.arange(30 * 5 * 7, dtype=np.uint8).reshape(30, 5, 7)


GOOD = idx_bytes(PIXELS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / f"{IMAGES}.gz").write_bytes(zipped(GOOD))
    (tmp_path / f"{LABELS}.gz").write_bytes(zipped(idx_bytes(np.arange(30) % 10)))
    return tmp_path


def zipped(content: bytes) -> bytes:
    """Without the time, so that the names of test cases stay the same."""
    return gzip.compress(content, mtime=0)


def test_a_split_is_read_value_by_value(folder: Path) -> None:
    images, labels = idx.read_split(folder, "train", 10)
    np.testing.assert_array_equal(images, PIXELS)
    np.testing.assert_array_equal(labels, np.arange(30) % 10)
    assert labels.dtype == np.int64


def test_missing_files_are_listed(folder: Path) -> None:
    assert idx.missing(folder) == ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
    (folder / "t10k-images-idx3-ubyte").write_bytes(b"")
    assert idx.missing(folder) == ["t10k-labels-idx1-ubyte"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (f"{IMAGES}.gz", zipped(GOOD)[:-40], "cannot be read"),
        (f"{IMAGES}.gz", b"not packed", "cannot be read"),
        (f"{IMAGES}.gz", b"", "starts with nothing"),
        (f"{IMAGES}.gz", zipped(GOOD[:9]), "is not an idx file"),
        (f"{IMAGES}.gz", zipped(b"\0\0\x09" + GOOD[3:]), "starts with 00 00 09 03"),
        (f"{IMAGES}.gz", zipped(idx_bytes(np.zeros((30, 35)))), "00 00 08 03"),
        (f"{IMAGES}.gz", zipped(GOOD[:-1]), "30 x 5 x 7"),
        (f"{IMAGES}.gz", zipped(GOOD + b"\0"), "contains 1051 values"),
        (f"{IMAGES}.gz", zipped(idx_bytes(np.zeros((0, 5, 7)))), "contains no images"),
        (f"{LABELS}.gz", zipped(idx_bytes(np.arange(29) % 10)), "contains 29 labels"),
        (f"{LABELS}.gz", zipped(idx_bytes(np.arange(30) % 11)), "contains the label 10"),
    ],
)
def test_a_bad_file_is_named(file: str, content: bytes, message: str, folder: Path) -> None:
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        idx.read_split(folder, "train", 10)
    assert caught.value.where == str(folder / file)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="apt-get install dataset-fashion-mnist")
def test_the_debian_package_has_6000_and_1000_images_of_each_class() -> None:
    for split, count in (("train", 6000), ("t10k", 1000)):
        images, labels = idx.read_split(DEBIAN, split, 10)
        assert images.shape == (10 * count, 28, 28)
        assert np.bincount(labels).tolist() == [count] * 10
