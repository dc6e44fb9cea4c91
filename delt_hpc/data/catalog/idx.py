"""MNIST's idx files: 00 00 08, the number of dimensions, their sizes (big-endian, 32 bits), the values (bytes)."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from delt_hpc.errors import UserError

_REMEDY = "copy or download the file again"


def missing(folder: Path) -> list[str]:
    """Which of the four files are missing from the folder, both plain and as .gz."""
    files = [file for split in ("train", "t10k") for file in _files(split)]
    return [file for file in files if not _path(folder, file).is_file()]


def read_split(folder: Path, split: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The images uint8 [n, height, width] and labels int64 [n] of `train` or `t10k`.

    Raises:
        UserError: naming the file that is damaged, empty or does not match the other one.
    """
    images_path, labels_path = (_path(folder, file) for file in _files(split))
    images, labels = read(images_path, 3), read(labels_path, 1).astype(np.int64)
    if images.size == 0:
        raise UserError("contains no images", where=str(images_path))
    if len(images) != len(labels):
        raise UserError(
            f"contains {len(labels)} labels",
            where=str(labels_path),
            expected=f"{len(images)}, the number of images in {images_path.name}",
        )
    if labels.max() >= classes:
        raise UserError(f"contains the label {labels.max()}", where=str(labels_path), expected=f"0..{classes - 1}")
    return images, labels


def read(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array in an idx file, plain or .gz.

    Raises:
        UserError: the file is unreadable, truncated, or of another type or number of dimensions.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot be read: {error}", where=str(path), remedy=_REMEDY) from None
    magic, header = bytes([0, 0, 8, dimensions]), 4 + 4 * dimensions
    if content[:4] != magic or len(content) < header:
        raise UserError(
            f"is not an idx file of this kind: it starts with {content[:4].hex(' ') or 'nothing'}",
            where=str(path),
            expected=f"{magic.hex(' ')}, then {dimensions} sizes",
            remedy=_REMEDY,
        )
    sizes = [int(size) for size in np.frombuffer(content, ">u4", dimensions, offset=4)]
    values = np.frombuffer(content, np.uint8, offset=header)
    if values.size != np.prod(sizes, dtype=object):
        raise UserError(
            f"is truncated or damaged: it contains {values.size} values",
            where=str(path),
            expected=f"{' x '.join(str(size) for size in sizes)}, according to its header",
            remedy=_REMEDY,
        )
    return values.reshape(sizes)


def _files(split: str) -> tuple[str, str]:
    return f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte"


def _path(folder: Path, file: str) -> Path:
    return folder / file if (folder / file).is_file() else folder / f"{file}.gz"
