"""A distilled data set on disk: its manifest, and the check that it is complete and unchanged."""

import hashlib
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from delt_hpc.data.index import ClassMap, Index
from delt_hpc.data.transforms import BadImageError, decode
from delt_hpc.errors import UserError
from delt_hpc.run.folder import read_json

MANIFEST, FACTS, CLASSES, CARD = "manifest.csv", "dataset.json", "classes.csv", "README.md"
COLUMNS = (
    *("file", "sha256", "class_index", "class", "number", "source"),
    *("entry_round", "iterations", "cross_entropy", "bn_loss"),
)
_TYPES = dict.fromkeys(("file", "sha256", "class", "source"), str) | dict.fromkeys(("class_index", "number"), np.int64)
Read = TypeVar("Read")


@dataclass(frozen=True)
class _Facts:
    """The values of dataset.json that the check needs."""

    ipc: int
    classes: int
    size: int

    @staticmethod
    def read(path: Path) -> "_Facts":
        content = read_json(path)
        try:
            return _Facts(content["ipc"], content["spec"]["classes"], content["spec"]["size"])
        except (KeyError, TypeError):
            raise UserError("is damaged", where=str(path), expected="ipc, spec.classes and spec.size") from None


def read_manifest(folder: Path) -> pd.DataFrame:
    """One row per image, in class-map order.

    Raises:
        UserError: the manifest is missing or damaged.
    """
    path = folder / MANIFEST
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


def problems(folder: Path) -> list[str]:
    """All defects of a distilled data set, one line each; empty if it is complete and unchanged.

    Every class of the class map must have exactly `ipc` images. Every image must exist, be unchanged (SHA-256),
    readable and of the data set's size. There must be no other folders, and no other files in the class folders.

    Raises:
        UserError: the manifest is missing or damaged.
    """
    table = read_manifest(folder)
    found: list[str] = []
    facts = _read(folder / FACTS, _Facts.read, found)
    classes = _read(folder / CLASSES, ClassMap.read, found)
    if facts and classes:
        found += _class_faults(table, classes, facts)
    for file, digest in zip(table["file"], table["sha256"], strict=True):
        fault = image_fault(folder / file, facts.size if facts else None, digest)
        if fault:
            found.append(f"{file}: {fault}")
    return found + _unlisted(folder, set(table["file"]))


def _read(path: Path, read: Callable[[Path], Read], found: list[str]) -> Read | None:
    if not path.exists():
        found.append(f"{path.name}: missing")
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


def _unlisted(folder: Path, listed: set[str]) -> list[str]:
    """Folders and files that ImageFolder would read as classes and images, but that the manifest does not list."""
    class_folders = {posixpath.dirname(file) for file in listed}
    found: list[str] = []
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        if inner.name not in class_folders:
            found.append(f"{inner.name}/: not in the manifest")
            continue
        here = [f"{inner.name}/{path.name}" for path in sorted(inner.iterdir())]
        found += [f"{name}: not in the manifest" for name in here if name not in listed]
    return found


def image_fault(path: Path, size: int | None, digest: str | None = None) -> str:
    """The defect of an image file, empty if there is none. Without `size` or `digest`, these are not checked."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        return "its content has changed (SHA-256)"
    try:
        image = decode(path)
    except BadImageError as error:
        return f"not a readable image: {error}"
    if size is None or image.size == (size, size):
        return ""
    return f"{image.width} x {image.height} pixels, {size} x {size} expected"
