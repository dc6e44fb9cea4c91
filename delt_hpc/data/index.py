"""The class map, and the index of each split. All modules refer to images by their positions in an index."""

import csv
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from delt_hpc.errors import UserError, some
from delt_hpc.run.folder import writing

# what torchvision's ImageFolder accepts, in upper or lower case
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_CLASS_COLUMNS = ("index", "folder", "name")


@dataclass(frozen=True)
class ClassMap:
    """Class index -> folder and readable name. The only source of labels; folders are strings, even `00010`."""

    folders: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.folders)

    def write(self, path: Path) -> None:
        with writing(path, "w") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(_CLASS_COLUMNS)
            table.writerows((i, *row) for i, row in enumerate(zip(self.folders, self.names, strict=True)))

    @staticmethod
    def read(path: Path) -> "ClassMap":
        """Read what `write` wrote.

        Raises:
            UserError: the file is missing, or its rows are not those of classes 0, 1, 2, ...
        """
        try:
            with path.open(encoding="utf-8", newline="") as file:
                header, *rows = csv.reader(file, strict=True)
            numbers, folders, names = zip(*rows, strict=True)
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from None
        except (ValueError, csv.Error):
            header, numbers = [], ()
        if header != list(_CLASS_COLUMNS) or numbers != tuple(str(i) for i in range(len(numbers))):
            raise UserError("is damaged", where=str(path), expected="rows of index (0, 1, 2, ...), folder, name")
        return ClassMap(folders, names)


@dataclass(frozen=True, eq=False)
class Index:
    """The images of a split, in class-map order.

    Attributes:
        root: the folder that the paths are relative to.
        paths: relative paths, POSIX separators; within a class sorted as ImageFolder sorts them.
        labels: class index of each path, int64 [len(paths)], ascending.
    """

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def positions(self, first: int, last: int) -> np.ndarray:
        """Positions of the images of classes first..last (inclusive)."""
        low, high = np.searchsorted(self.labels, [first, last + 1])
        return np.arange(low, high)

    def batches(self, positions: np.ndarray, size: int, *, by_class: bool = False) -> Iterator[np.ndarray]:
        """The positions in batches of at most `size`; with `by_class`, none has images of two classes.

        Args:
            positions: int64 [n]; by class, images of a class follow each other.
        """
        changes = np.diff(self.labels[positions]) if by_class else np.zeros(0)
        for part in np.split(positions, np.flatnonzero(changes) + 1):
            yield from (part[start : start + size] for start in range(0, len(part), size))

    def counts(self, classes: int) -> np.ndarray:
        """Images of each class, int64 [classes]."""
        return np.bincount(self.labels, minlength=classes)

    def fingerprint(self) -> str:
        """Changes when an image is added, removed, renamed or moved to another class."""
        summary = hashlib.sha256()
        for path, label in zip(self.paths, self.labels.tolist(), strict=True):
            summary.update(f"{label}\0{path}\0".encode(errors="surrogateescape"))
        return summary.hexdigest()

    def write(self, path: Path) -> None:
        with writing(path, "w") as file:
            pd.DataFrame({"class_index": self.labels, "img_path": self.paths}).to_csv(file, index=False)

    @staticmethod
    def read(path: Path, root: Path) -> "Index":
        """Read what `write` wrote.

        Raises:
            UserError: the file is missing or damaged.
        """
        try:
            table = pd.read_csv(path, dtype={"class_index": np.int64, "img_path": str}, keep_default_na=False)
            labels = table["class_index"].to_numpy(copy=True)
            if (np.diff(labels, prepend=0) < 0).any():
                raise ValueError
            return Index(root, tuple(table["img_path"]), labels)
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from None
        except (ValueError, KeyError):
            raise UserError(
                "is damaged", where=str(path), expected="columns class_index (0, 0, ..., 1, ...), img_path"
            ) from None


def class_folders(folder: Path) -> list[str]:
    """The names of the class folders, sorted."""
    try:
        found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror}",
            where=str(folder),
            expected="one folder of images per class",
            remedy="set data.root (and data.train, data.val) to the folders of the data set",
        ) from None
    if not found:
        raise UserError("contains no folders", where=str(folder), expected="one folder of images per class")
    return found


def scan(root: Path, folders: Sequence[str]) -> Index:
    """Index of root/<folder>/**: ImageFolder's rules (its extensions, recursive, sorted), classes in the given order.

    Raises:
        UserError: naming every class without a folder or without images.
    """
    paths: list[str] = []
    labels: list[int] = []
    empty: list[str] = []
    for label, folder in enumerate(folders):
        found = list(_images(root, folder))
        if not found:
            empty.append(folder)
        paths += found
        labels += [label] * len(found)
    if empty:
        raise UserError(
            f"no images for {len(empty)} of {len(folders)} classes: {some(empty)}",
            where=str(root),
            expected=f"each class's folder with files ending in {', '.join(EXTENSIONS)}",
        )
    _refuse_undecodable_names(root, paths)
    return Index(root, tuple(paths), np.asarray(labels, dtype=np.int64))


def from_pairs(root: Path, pairs: Iterable[tuple[str, int]]) -> Index:
    """Index of listed (relative path, class index) pairs, in class order."""
    ordered = sorted(pairs, key=lambda pair: (pair[1], pair[0]))
    return Index(root, tuple(path for path, _ in ordered), np.asarray([label for _, label in ordered], dtype=np.int64))


def _images(root: Path, folder: str) -> Iterator[str]:
    """Paths below `root` of the image files of a class; none if there is no such folder.

    Raises:
        UserError: a folder cannot be read, links form a loop, or a file is a pipe, socket or device.
    """
    files: dict[str, list[str]] = {}
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(folder, ())]
    while waiting:
        parent, above = waiting.pop()
        try:
            status = (root / parent).stat()
            entries = sorted(os.scandir(root / parent), key=lambda entry: entry.name)
        except OSError as error:
            if not above and isinstance(error, FileNotFoundError | NotADirectoryError):
                return
            raise UserError(
                f"cannot be read: {error.strerror}", where=str(root / parent), remedy="make it readable, or remove it"
            ) from None
        key = (status.st_dev, status.st_ino)
        if key in above:
            raise UserError("is a link to a folder above it", where=str(root / parent), remedy="remove the link")
        for entry in entries:
            if entry.is_dir():
                waiting.append((f"{parent}/{entry.name}", (*above, key)))
            elif entry.name.lower().endswith(EXTENSIONS):
                if not entry.is_file():
                    _refuse_special(entry)
                files.setdefault(parent, []).append(entry.name)
    for parent in sorted(files):
        yield from (f"{parent}/{name}" for name in files[parent])


def _refuse_special(entry: os.DirEntry[str]) -> None:
    """A broken link is an unreadable file like others; reading from a pipe would wait for ever."""
    try:
        entry.stat()
    except OSError:
        return
    raise UserError(
        "is a pipe, a socket or a device", where=entry.path, expected="regular image files", remedy="remove it"
    )


def _refuse_undecodable_names(root: Path, paths: Sequence[str]) -> None:
    """A CSV file cannot hold names that are not UTF-8, nor line breaks in them reliably."""
    bad = [repr(path) for path in paths if "\r" in path or "\n" in path or not _is_utf8(path)]
    if bad:
        raise UserError(
            f"file names that are not UTF-8 or contain line breaks: {some(bad)}", where=str(root), remedy="rename them"
        )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
