"""A distilled data set on disk: its manifest, and the check that it is complete and unchanged."""

import hashlib
import io
import os
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from PIL import Image

from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.index import ClassMap, Index
from delt_hpc.data.transforms import BAD_IMAGE, BadImageError, decode
from delt_hpc.errors import UserError, some
from delt_hpc.run import checksums, late
from delt_hpc.run.folder import DONE, STAMP, read_json

MANIFEST, FACTS, CLASSES, CARD = "manifest.csv", "dataset.json", "classes.csv", "README.md"
SEPARATOR = "//"  # between the sources of an image made of several; no relative path contains it
COLUMNS = (
    *("file", "sha256", "class_index", "class", "number", "source"),
    *("entry_round", "iterations", "cross_entropy", "bn_loss"),
)
# What is beside the class folders; the markers are those of the run folder.
_BESIDE = frozenset((MANIFEST, FACTS, CLASSES, CARD, DONE, STAMP))
_TYPES = dict.fromkeys(("file", "sha256", "class", "source"), str) | dict.fromkeys(("class_index", "number"), np.int64)
_REMEDY = "run the stage `aggregate` again: it sets a damaged set aside and makes it again"
Read = TypeVar("Read")


@dataclass(frozen=True)
class _Facts:
    """The values of dataset.json that the check needs; `files`: checksums of the other files beside the folders."""

    ipc: int
    classes: int
    size: int
    files: checksums.Listing

    @staticmethod
    def read(path: Path) -> "_Facts":
        content = read_json(path)
        if isinstance(content, dict) and (checksums.CHECKSUM in content or checksums.FILES in content):
            content = checksums.read_sealed(path, "")
        try:
            spec, ipc = DatasetSpec.from_json(content["spec"]), content["ipc"]
            numbers = (*spec.mean, *spec.std)
            if not all(np.isfinite(numbers)) or min(ipc, spec.classes, spec.size, *spec.std) <= 0:
                raise ValueError
            return _Facts(ipc, spec.classes, spec.size, content.get(checksums.FILES, {}))
        except (KeyError, TypeError, ValueError):
            raise UserError("is damaged", where=str(path), expected="ipc and spec") from None


def read_manifest(folder: Path) -> pd.DataFrame:
    """One row per image, in class-map order.

    Raises:
        UserError: the manifest is missing or damaged.
    """
    path = folder / MANIFEST
    if path.exists() and not path.is_file():
        raise UserError("is not a regular file", where=str(path))
    try:
        table = pd.read_csv(path, dtype=_TYPES, keep_default_na=False)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"there is no {MANIFEST}", where=str(folder), expected="a folder made by the stage `aggregate`"
        ) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except ValueError as error:
        raise UserError(f"is damaged: {error}", where=str(path)) from None
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise UserError(f"has no column {', '.join(missing)}", where=str(path))
    return table


def index(folder: Path) -> Index:
    """The distilled images as an index."""
    table = read_manifest(folder)
    return Index(folder, tuple(table["file"]), table["class_index"].to_numpy("int64", copy=True))


def problems(folder: Path, *, deep: bool = False) -> list[str]:
    """All defects of a distilled data set, one line each; empty if it is complete and unchanged.

    Every class of the class map must have exactly `ipc` images. Every image must be a regular file inside the data
    set, unchanged (SHA-256) and of the data set's size. There must be nothing else in the folder.

    Args:
        deep: also decode every image.

    Raises:
        UserError: the manifest is missing or damaged.
    """
    table = read_manifest(folder)
    found: list[str] = []
    facts = _read(folder / FACTS, _Facts.read, found)
    classes = _read(folder / CLASSES, ClassMap.read, found)
    _read(folder / CARD, Path.read_bytes, found)
    if facts:
        found += [line for line in checksums.changed(folder, facts.files) if not line.endswith(": missing")]
    if facts and classes:
        found += _class_faults(table, classes, facts)
    found += _value_faults(table)
    for file, digest in zip(table["file"], table["sha256"], strict=True):
        fault = "not a path inside the data set" if _leaves(file) else ""
        fault = fault or image_fault(folder / file, facts.size if facts else None, digest, deep=deep)
        if fault:
            found.append(f"{file}: {fault}")
    return found + _unlisted(folder, set(table["file"])) + _outward_links(folder)


def faults(folder: Path) -> list[str]:
    """All defects of the distilled set of a run: `problems`, and files that changed since `aggregate` wrote them."""
    try:
        return checksums.faults(folder) + problems(folder)
    except UserError as error:
        return [f"{Path(error.where).name}: {error.what}"]


def require(folder: Path) -> None:
    """Check the distilled set of a run before it is read.

    Raises:
        UserError: names every defect.
    """
    found = late.settled(folder, lambda: faults(folder))
    if found:
        raise UserError(
            f"{len(found)} fault(s): {some(found)}",
            where=str(folder),
            remedy=_REMEDY,
        )


def require_tables(folder: Path) -> None:
    """Check manifest and class map of a distilled set, wherever it is, against the checksums in dataset.json.

    Raises:
        UserError: one of them was changed, or dataset.json is missing or damaged.
    """
    path = folder / FACTS
    if not path.is_file():
        raise UserError(f"there is no {FACTS}", where=str(folder), expected="a folder made by the stage `aggregate`")
    listed = _Facts.read(path).files
    found = checksums.changed(folder, {name: listed[name] for name in (MANIFEST, CLASSES) if name in listed})
    if found:
        raise UserError(f"{len(found)} file(s) changed: {some(found)}", where=str(folder), remedy=_REMEDY)


def read_image(path: Path, digest: str) -> Image.Image:
    """An image of the set, as RGB.

    Args:
        digest: its SHA-256 in the manifest.

    Raises:
        UserError: the file is missing, changed, or not an image.
    """
    fault = ""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() == digest:
            return decode(path, content)
        fault = "its content has changed (SHA-256)"
    except OSError as error:
        fault = f"cannot be read: {error.strerror}"
    except BadImageError as error:
        fault = f"not a readable image: {str(error).removeprefix(f'{path}: ')}"
    raise UserError(fault, where=str(path), remedy=_REMEDY)


def require_images(folder: Path) -> None:
    """Check the images of a distilled set whose other files are unchanged.

    Raises:
        UserError: names the images that are missing or changed.
    """
    table = read_manifest(folder)
    pairs = zip(table["file"], table["sha256"], strict=True)
    found = [
        f"{file}: {fault}" for file, digest in pairs if (fault := image_fault(folder / file, None, digest, deep=False))
    ]
    if found:
        raise UserError(f"{len(found)} image(s): {some(found)}", where=str(folder), remedy=_REMEDY)


def _read(path: Path, read: Callable[[Path], Read], found: list[str]) -> Read | None:
    if not path.is_file():
        found.append(f"{path.name}: {'not a regular file' if path.exists() else 'missing'}")
        return None
    try:
        return read(path)
    except UserError as error:
        found.append(f"{path.name}: {error.what}")
        return None


def _class_faults(table: pd.DataFrame, classes: ClassMap, facts: _Facts) -> list[str]:
    found: list[str] = []
    if len(classes) != facts.classes:
        found.append(f"{CLASSES}: {len(classes)} classes, {facts.classes} expected")
    twice = table["file"][table["file"].duplicated()]
    found += [f"{file}: listed twice in the manifest" for file in twice]
    named = dict(enumerate(classes.folders))
    for file, class_index, name in zip(table["file"], table["class_index"], table["class"], strict=True):
        if not named.get(class_index) == name == posixpath.dirname(file):
            found.append(f"{file}: class {class_index} ({name}) in the manifest does not match {CLASSES}")
    counts = table["class_index"].value_counts()
    for class_index, name in named.items():
        have = int(counts.get(class_index, 0))
        if have != facts.ipc:
            found.append(f"class {name}: {have} images in the manifest, {facts.ipc} expected")
    return found


def _leaves(path: str) -> bool:
    """Whether a relative path would lead out of its folder."""
    return path.startswith("/") or ".." in path.split("/")


def _value_faults(table: pd.DataFrame) -> list[str]:
    found = [
        f"{file}: {name} is {value!r}, not a finite number"
        for name in ("entry_round", "iterations", "cross_entropy", "bn_loss")
        for file, value in zip(table["file"], table[name], strict=True)
        if not _is_finite(value)
    ]
    return found + [
        f"{file}: its source {source!r} is not a path inside the training images"
        for file, source in zip(table["file"], table["source"], strict=True)
        if any(_leaves(path) for path in source.split(SEPARATOR))
    ]


def _is_finite(value: object) -> bool:
    try:
        return bool(np.isfinite(float(value)))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def _unlisted(folder: Path, listed: set[str]) -> list[str]:
    """Folders and files that the manifest does not list; ImageFolder would read some of them as classes and images."""
    class_folders = {posixpath.dirname(file) for file in listed}
    found: list[str] = []
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            found += [] if path.name in _BESIDE else [f"{path.name}: not part of the data set"]
        elif path.name not in class_folders:
            found.append(f"{path.name}/: not in the manifest")
        else:
            here = [f"{path.name}/{inner.name}" for inner in sorted(path.iterdir())]
            found += [f"{name}: not in the manifest" for name in here if name not in listed]
    return found


def _outward_links(folder: Path) -> list[str]:
    """Links to files and folders outside the data set: they would be missing from a copy of it."""
    root = folder.resolve()
    links = [Path(parent, name) for parent, *inner in os.walk(folder) for name in chain(*inner)]
    return [
        f"{path.relative_to(folder).as_posix()}: a link that leaves the data set"
        for path in sorted(links)
        if path.is_symlink() and not path.resolve().is_relative_to(root)
    ]


def image_fault(path: Path, size: int | None, digest: str | None = None, *, deep: bool = True) -> str:
    """The defect of an image file, empty if there is none. Without `size` or `digest`, these are not checked.

    Args:
        deep: decode the image; otherwise only its size is read.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            return "not a regular file"
        content = path.read_bytes()
    except OSError as error:
        lost = isinstance(error, FileNotFoundError | NotADirectoryError)
        return "missing" if lost else f"cannot be read: {error.strerror}"
    except ValueError as error:  # a null byte in the path
        return f"cannot be read: {error}"
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        return "its content has changed (SHA-256)"
    try:
        width, height = decode(path).size if deep else _size(content)
    except BadImageError as error:
        return f"not a readable image: {error}"
    fits = size is None or (width, height) == (size, size)
    return "" if fits else f"{width} x {height} pixels, {size} x {size} expected"


def _size(content: bytes) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.size
    except BAD_IMAGE as error:
        raise BadImageError(str(error)) from None
