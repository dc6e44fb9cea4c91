"""The images of an export in one of three formats. The same run gives the same bytes."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar, get_args

from delt_hpc.data.index import ClassMap
from delt_hpc.distilled.dataset import TRAIN
from delt_hpc.errors import UserError
from delt_hpc.export.run import FinishedRun
from delt_hpc.keyed_random import permutation
from delt_hpc.run import stop

Format = Literal["imagefolder", "huggingface", "webdataset"]
FORMATS: tuple[Format, ...] = get_args(Format)
DATA = "data"
IMAGES_PER_TAR, IMAGES_PER_PARQUET, IMAGES_PER_ROW_GROUP = 1000, 10_000, 500
Item = TypeVar("Item")


def parse(name: str) -> Format:
    """The format of that name.

    Raises:
        UserError: there is none.
    """
    for known in FORMATS:
        if name == known:
            return known
    raise UserError("is not a format", where=f"--to {name}", expected=", ".join(FORMATS))


def require_library(to: Format) -> None:
    """Check that the library that writes the format is installed.

    Raises:
        UserError: it is not.
    """
    if to == "huggingface" and find_spec("pyarrow") is None:
        raise UserError("Parquet files need pyarrow", where=f"--to {to}", remedy="pip install 'delt-hpc[huggingface]'")


def write(source: FinishedRun, to: Format, folder: Path) -> None:
    """Write the images into `folder`.

    imagefolder: train/<class>/<number>.<suffix>. huggingface: Parquet files in data/ with the columns `image` and
    `label`. webdataset: tar files with <row>.<suffix> and <row>.cls, where the row is that of manifest.csv.
    """
    _WRITERS[to](source, folder)


def label_names(classes: ClassMap) -> tuple[str, ...]:
    """The readable names, or the class folders where two classes have the same name."""
    return classes.names if len(set(classes.names)) == len(classes.names) else classes.folders


def _imagefolder(source: FinishedRun, folder: Path) -> None:
    for file in source.table["file"]:
        stop.check()
        path = folder / TRAIN / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.image(file))


def _huggingface(source: FinishedRun, folder: Path) -> None:
    import pyarrow as pa  # noqa: PLC0415  # optional
    from pyarrow import parquet  # noqa: PLC0415

    names = label_names(source.dataset.classes)
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    (folder / DATA).mkdir()
    rows = list(zip(source.table["file"], source.table["class_index"].tolist(), strict=True))
    for name, part in _shards(rows, IMAGES_PER_PARQUET, "parquet"):
        stop.check()
        images = [{"bytes": source.image(file), "path": file.replace("/", "-")} for file, _ in part]
        table = pa.table({"image": images, "label": [label for _, label in part]}, schema=schema)
        parquet.write_table(table, folder / DATA / name, row_group_size=IMAGES_PER_ROW_GROUP)


def _webdataset(source: FinishedRun, folder: Path) -> None:
    # Shuffled, because readers of tar files shuffle only among neighbours.
    order = permutation(len(source.table), source.config.seed, "export", "order").tolist()
    files, labels = source.table["file"].tolist(), source.table["class_index"].tolist()
    for name, part in _shards(order, IMAGES_PER_TAR, "tar"):
        stop.check()
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in part:
                suffix = PurePosixPath(files[row]).suffix
                _add(tar, f"{row:08d}.cls", str(labels[row]).encode())
                _add(tar, f"{row:08d}{suffix}", source.image(files[row]))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file without times and owners."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))


def _shards(items: Sequence[Item], size: int, suffix: str) -> Iterator[tuple[str, Sequence[Item]]]:
    """The items in parts of at most `size`, each with its file name, as the Hub names shards."""
    count = -(-len(items) // size)
    for number in range(count):
        yield f"train-{number:05d}-of-{count:05d}.{suffix}", items[number * size : (number + 1) * size]


_WRITERS: dict[Format, Callable[[FinishedRun, Path], None]] = {
    "imagefolder": _imagefolder,
    "huggingface": _huggingface,
    "webdataset": _webdataset,
}
