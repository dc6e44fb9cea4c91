"""A check of a data set before a run: every image file is read once, and all problems are listed."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from delt_hpc.config import methods
from delt_hpc.config.schema import Config, Data
from delt_hpc.data import measure
from delt_hpc.data.catalog.specs import Colour, image_size, resolve, root_of
from delt_hpc.data.dataset import Dataset, locate
from delt_hpc.data.index import Index, class_folders
from delt_hpc.data.transforms import BadImageError, decode
from delt_hpc.errors import UserError, some
from delt_hpc.run.progress import Reporter

_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class SplitCheck:
    """What was found in train/ or val/.

    Attributes:
        folder: of the split.
        counts: number of readable images of each class, by class folder.
        unreadable: `path: reason` of each file that cannot be read as an image.
        rotated: paths of the images that EXIF marks as rotated.
        smallest, largest: sizes of the images with the fewest and with the most pixels; None if none is readable.
    """

    folder: str
    counts: dict[str, int]
    unreadable: tuple[str, ...]
    rotated: tuple[str, ...]
    smallest: Size | None
    largest: Size | None


@dataclass(frozen=True)
class DataCheck:
    """The result of `check`.

    Attributes:
        mean, std: as `data.mean: measure` gives them; None if the image size is unknown or no image is readable.
        errors: what stops a run.
        warnings: what a run skips or ignores.
    """

    train: SplitCheck
    val: SplitCheck
    mean: Colour | None
    std: Colour | None
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


class _File(NamedTuple):
    """A file that was read: its size, or the reason why it is not an image."""

    size: Size | None
    reason: str = ""
    rotated: bool = False


def check(config: Config, reporter: Reporter) -> DataCheck:
    """Read every image of the data set once, in one thread per available CPU.

    Raises:
        UserError: the data set is not found, or a class has no files, so that there is nothing to read.
    """
    data = config.data
    folders, train_index, val_index = locate(data, reporter)
    size = _known_size(data)
    pixels = np.zeros((3, 256), dtype=np.int64)
    train_files = _read_all(train_index, "checking train", reporter, size, config.seed, pixels)
    val_files = _read_all(val_index, "checking val", reporter)
    train, val = _split(train_index, folders, train_files), _split(val_index, folders, val_files)
    mean, std = map(measure.colour, measure.moments(pixels)) if pixels.any() else (None, None)
    unreadable = [f"{split.folder}/{line}" for split in (train, val) for line in split.unreadable]
    errors = [*_setting_errors(data, len(folders), mean, std), *_too_few(config, size, train, val)]
    warnings = [*_split_problems(data), *_rotated(train, val)]
    (errors if data.on_bad == "raise" else warnings).extend(unreadable)
    return DataCheck(train, val, mean, std, tuple(errors), tuple(warnings))


def lines(config: Config, result: DataCheck) -> Iterator[str]:
    """The result as text, the warnings and errors last."""
    data, ipc = config.data, config.select.ipc
    for name, split in (("train", result.train), ("val", result.val)):
        counts = list(split.counts.values())
        yield f"{name}: {split.folder}: {sum(counts)} images in {len(counts)} classes, {_span(counts)} in a class"
        if split.smallest and split.largest:
            yield f"  from {split.smallest[0]} x {split.smallest[1]} to {split.largest[0]} x {split.largest[1]} pixels"
    if result.mean and result.std:
        yield f"measured mean {_numbers(result.mean)}, std {_numbers(result.std)}"
    if isinstance(data.mean, list) and isinstance(data.std, list):
        yield f"configured mean {_numbers(data.mean)}, std {_numbers(data.std)}"
    yield f"method {config.method}: {methods.load(config.method).citation}"
    least = min(result.train.counts.values())
    yield f"select.ipc {ipc}: the smallest class has {least} readable training images"
    yield from (f"warning: {line}" for line in result.warnings)
    yield from (f"error: {line}" for line in result.errors)


def only_in_val(data: Data) -> list[str]:
    """Class folders in val/ that train/ does not have; none if a table lists the validation images."""
    train, val = root_of(data) / data.train, root_of(data) / data.val
    if not train.is_dir() or not val.is_dir() or (val / "val_annotations.txt").is_file():
        return []
    return sorted(set(class_folders(val)) - set(class_folders(train)))


def summary(config: Config, dataset: Dataset) -> Iterator[str]:
    """What a run is about to work on, without reading images."""
    spec = dataset.spec
    yield (
        f"{spec.name}: {spec.classes} classes, {len(dataset.train)} training and {len(dataset.val)} validation images,"
        f" network input {spec.size} x {spec.size}, {config.select.ipc} distilled images per class"
    )
    yield from (f"warning: {line}" for line in _split_problems(config.data))


def _known_size(data: Data) -> int | None:
    try:
        return image_size(data)
    except UserError:  # reported by `_setting_errors`
        return None


def _read_all(
    index: Index,
    title: str,
    reporter: Reporter,
    size: int | None = None,
    seed: int = 0,
    pixels: np.ndarray | None = None,
) -> list[_File]:
    """Read the images of a split. If `size` is given, add those that `measure` uses to the histogram `pixels`."""
    measured = set(measure.sampled_positions(len(index), seed).tolist()) if size else set()
    positions = range(len(index))
    read = partial(_read, index, size, measured)
    files = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool, reporter.bar(title, len(index)) as bar:
        for file, counts in pool.map(read, positions):
            files.append(file)
            if pixels is not None and counts is not None:
                pixels += counts
            bar.advance()
    return files


def _read(index: Index, size: int | None, measured: set[int], position: int) -> tuple[_File, np.ndarray | None]:
    path = index.root / index.paths[position]
    try:
        image = decode(path)
    except BadImageError as error:
        return _File(None, str(error).removeprefix(f"{path}: ")), None
    counts = measure.histogram(image, size) if size and position in measured else None
    return _File(image.size, rotated=image.getexif().get(_ORIENTATION, 1) not in (0, 1)), counts


def _split(index: Index, folders: Sequence[str], files: Sequence[_File]) -> SplitCheck:
    readable = np.bincount(index.labels[[file.size is not None for file in files]], minlength=len(folders))
    sizes = sorted((file.size for file in files if file.size), key=lambda size: (size[0] * size[1], size))
    found = list(zip(index.paths, files, strict=True))
    return SplitCheck(
        folder=str(index.root),
        counts=dict(zip(folders, readable.tolist(), strict=True)),
        unreadable=tuple(f"{path}: {file.reason}" for path, file in found if file.size is None),
        rotated=tuple(path for path, file in found if file.rotated),
        smallest=sizes[0] if sizes else None,
        largest=sizes[-1] if sizes else None,
    )


def _setting_errors(data: Data, classes: int, mean: Colour | None, std: Colour | None) -> Iterator[str]:
    measured = (mean, std) if mean and std and data.mean == "measure" else None
    if data.mean == "measure" and data.size and not measured:
        return  # no image is readable, which is reported as such
    try:
        spec = resolve(data, classes, measured)
    except UserError as error:
        yield str(error)
        return
    if 0 in spec.std:
        yield "data.std: a channel is the same in every pixel, so it cannot be normalised"


def _too_few(config: Config, size: int | None, train: SplitCheck, val: SplitCheck) -> Iterator[str]:
    ipc, needed = config.select.ipc, config.images_of_class(size) if size else config.select.ipc
    small = [f"{folder} has {count}" for folder, count in train.counts.items() if count < needed]
    if small:
        most = min(train.counts.values()) * ipc // needed
        each = f", of crops of {needed // ipc} images each," if needed > ipc else ""
        yield f"select.ipc: {ipc} images per class{each} requested, but {some(small)}; use at most {most}"
    if config.rank.candidates == "crops" and config.rank.pool < needed:
        yield f"rank.pool: {config.rank.pool} is less than the {needed} crops of the mosaics of a class"
    if not any(val.counts.values()):
        yield f"{val.folder}: no readable image"


def _split_problems(data: Data) -> Iterator[str]:
    train, val = root_of(data) / data.train, root_of(data) / data.val
    if train.resolve() == val.resolve():
        yield "data.val and data.train are the same folder: accuracies will say nothing about new images"
    extra = only_in_val(data)
    if extra:
        yield f"{data.val}/ has class folders that {data.train}/ does not have; they are not used: {some(extra)}"


def _rotated(*splits: SplitCheck) -> Iterator[str]:
    paths = [f"{split.folder}/{path}" for split in splits for path in split.rotated]
    if paths:
        yield (
            f"EXIF marks images as rotated. They are used as stored, as ImageFolder does; rotate"
            f" the files themselves if that is wrong: {some(paths)}"
        )


def _span(counts: Sequence[int]) -> str:
    return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{number:.4g}" for number in values) + ")"
