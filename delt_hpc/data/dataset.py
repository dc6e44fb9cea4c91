"""A run's data set: found, checked and recorded in the run folder once; every stage opens that record."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from delt_hpc.config.schema import Config, Data, is_free
from delt_hpc.data import measure
from delt_hpc.data.catalog import names, sources
from delt_hpc.data.catalog.specs import DatasetSpec, resolve, root_of
from delt_hpc.data.index import ClassMap, Index, class_folders, from_pairs, scan
from delt_hpc.errors import UserError, some
from delt_hpc.keyed_random import digest
from delt_hpc.run import checksums
from delt_hpc.run.folder import RunFolder, differences, read_json
from delt_hpc.run.progress import Reporter

_REMEDY = "delete dataset.json; the next command scans the data set again and compares it with what the run has made"
# Names that files beside the class folders have, in selected/ and distilled/.
RESERVED = frozenset(
    (
        *("manifest.csv", "dataset.json", "classes.csv", "README.md"),
        *("selected.csv", "mosaics.csv", "done.json", "made_by.json", "removed.json"),
    )
)
MAX_NAME_BYTES = 200


@dataclass(frozen=True, eq=False)
class Dataset:
    spec: DatasetSpec
    classes: ClassMap
    train: Index
    val: Index


def prepare(config: Config, run: RunFolder, reporter: Reporter | None = None) -> Dataset:
    """The run's data set; the first call finds it and records it in the run folder.

    Raises:
        UserError: the data set is not found, differs from the configuration, overlaps the run folder, or has a class
            with fewer than `select.ipc` images; or its record was changed.
    """
    _refuse_overlap(config, run)
    if not run.dataset.exists():
        _set_up(config, run, reporter or Reporter())
    record = checksums.read_sealed(run.dataset, _REMEDY)
    found = differences(record["made_with"], _values(config))
    if found:
        raise UserError(
            "was set up with another configuration:\n    " + "\n    ".join(found),
            where=str(run.root),
            remedy="choose another run folder (--run) or restore the value",
        )
    _require_unchanged(run, record)
    dataset = open_dataset(config, run)
    _refuse_mosaics(config, dataset.spec)
    _refuse_small_classes(config, dataset)
    return dataset


def open_dataset(config: Config, run: RunFolder) -> Dataset:
    """The data set as recorded by `prepare`."""
    root = root_of(config.data)
    return Dataset(
        DatasetSpec.from_json(read_json(run.dataset)["spec"]),
        ClassMap.read(run.classes),
        Index.read(run.index("train"), root / config.data.train),
        Index.read(run.index("val"), root / config.data.val),
    )


def locate(data: Data, reporter: Reporter) -> tuple[list[str], Index, Index]:
    """The class folders, the training images and the validation images; a known data set is set up first.

    Raises:
        UserError: the data set is not found, or a class has no images.
    """
    root = root_of(data)
    sources.provide(data.name, root, data.train, data.val, reporter)
    train_root, val_root = root / data.train, root / data.val
    present = class_folders(train_root)
    folders = data.classes or sources.subset(data.name, present) or present
    _refuse_names(folders)
    train = scan(train_root, folders)
    listed = sources.listed_validation(val_root, folders)
    val = from_pairs(val_root, listed) if listed is not None else scan(val_root, folders)
    return folders, train, val


def _set_up(config: Config, run: RunFolder, reporter: Reporter) -> None:
    data, root = config.data, root_of(config.data)
    folders, train, val = locate(data, reporter)
    measured = measure.colours(train, data, config.seed, reporter) if data.mean == "measure" else None
    spec = resolve(data, len(folders), measured)
    classes = ClassMap(tuple(folders), tuple(names.readable(data.name, root, folders)))
    classes.write(run.classes)
    train.write(run.index("train"))
    val.write(run.index("val"))
    checksums.write_sealed(
        run.dataset,
        {
            "spec": spec.to_json(),
            "fingerprint": digest(train.fingerprint(), val.fingerprint(), *folders).hex(),
            "train_images": len(train),
            "val_images": len(val),
            "made_with": _values(config),
            checksums.FILES: checksums.listing(run.root, [run.classes, run.index("train"), run.index("val")]),
        },
    )


def _require_unchanged(run: RunFolder, record: dict[str, Any]) -> None:
    """Refuse a class map or an index other than the one that was recorded."""
    found = checksums.changed(run.root, record[checksums.FILES])
    if found:
        raise UserError(f"changed since they were written: {some(found)}", where=str(run.root), remedy=_REMEDY)


def _values(config: Config) -> dict[str, object]:
    """The configuration values the record depends on; the seed too, if it selects the images to measure."""
    plain = config.data.model_dump(mode="json")
    values = {f"data.{name}": plain[name] for name, field in Data.model_fields.items() if not is_free(field)}
    return values | ({"seed": config.seed} if config.data.mean == "measure" else {})


def _refuse_names(folders: Sequence[str]) -> None:
    """A class is one folder below the split, and later one folder below selected/ and distilled/."""
    paths = [repr(folder) for folder in folders if folder in ("", ".", "..") or "/" in folder]
    if paths:
        raise UserError(f"{some(paths)} cannot name a class", where="data.classes", expected="folder names without `/`")
    taken = [folder for folder in folders if folder in RESERVED]
    if taken:
        raise UserError(
            f"the class folders {some(taken)} have the names of files of a distilled data set",
            where="data.train",
            remedy="rename them, or choose the class folders with data.classes",
        )
    long = [f"{folder[:40]}..." for folder in folders if len(os.fsencode(folder)) > MAX_NAME_BYTES]
    if long:
        raise UserError(
            f"names of class folders are too long: {some(long)}",
            where="data.train",
            expected=f"at most {MAX_NAME_BYTES} bytes, because temporary files need longer names",
        )


def _refuse_overlap(config: Config, run: RunFolder) -> None:
    """A run folder inside the images would be read as a class; images in a run folder would be deleted with it."""
    root, output = root_of(config.data), run.root.resolve()
    inputs = {"data.root": root, "data.train": root / config.data.train, "data.val": root / config.data.val}
    for key, folder in inputs.items():
        source = folder.resolve()
        if output == source or output.is_relative_to(source) or source.is_relative_to(output):
            raise UserError(
                f"the run folder {run.root} and the data set {folder} overlap",
                where=key,
                expected="two folders, neither inside the other",
                remedy="choose another run folder (--run)",
            )


def _refuse_small_classes(config: Config, dataset: Dataset) -> None:
    ipc, tiles = config.select.ipc, config.rank.tiles_at(dataset.spec.size)
    counts = dataset.train.counts(len(dataset.classes))
    small = [
        f"{folder} has {count}"
        for folder, count in zip(dataset.classes.folders, counts.tolist(), strict=True)
        if count < config.images_of_class(dataset.spec.size)
    ]
    if small:
        each = f", each of crops of {tiles**2} images," if tiles > 1 else ""
        raise UserError(
            f"{ipc} images per class{each} requested, but {some(small)}",
            where="select.ipc",
            expected=f"at most {int(counts.min()) // tiles**2}, the smallest class",
        )


def _refuse_mosaics(config: Config, spec: DatasetSpec) -> None:
    """Mosaics that do not fill the image, or need more crops than there are candidates."""
    rank, needed = config.rank, config.images_of_class(spec.size)
    if rank.candidates == "images":
        return
    if spec.size % rank.tiles_at(spec.size):
        raise UserError(
            f"{rank.tiles_at(spec.size)} crops do not fill a side of {spec.size} pixels",
            where="rank.tiles",
            remedy="set rank.tiles: 1",
        )
    if rank.pool < needed:
        raise UserError(
            f"{rank.pool} images give as many crops of a class, but its mosaics need {needed}",
            where="rank.pool",
            remedy=f"set rank.pool: {needed} or more, or lower select.ipc",
        )
