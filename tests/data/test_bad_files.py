"""Unreadable files: named in an error, or skipped and listed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.loading import BACKENDS, SPEC, loader_config, orders, read, training_set

from delt_hpc.config.schema import Loader
from delt_hpc.data import bad_files
from delt_hpc.data.bad_files import BadFiles
from delt_hpc.data.index import Index, scan
from delt_hpc.data.loader import ValidationSet, evaluation_batches
from delt_hpc.errors import UserError
from delt_hpc.run.folder import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")  # on one core


def all_batches(index: Index, workers: int) -> list[Callable[[], object]]:
    """Each way to read an index, in one batch."""
    validation = ValidationSet(index, SPEC, 64, loader_config(workers, 1))
    return [
        lambda: list(evaluation_batches(index, np.arange(len(index)), SPEC, 64, loader_config(workers), BadFiles())),
        lambda: list(validation.batches()),
        partial(read, training_set(index, 64, workers=workers), 0, 1),
        partial(read, training_set(index, 64, workers=workers, cache_mib=1), 0, 1),
    ]


@pytest.mark.usefixtures("many_workers")
@pytest.mark.parametrize("workers", [0, 2])
def test_every_unreadable_file_is_named(workers: int, tmp_path: Path, image_folder: Callable[..., Path]) -> None:
    root = image_folder(tmp_path / "train", {"a": 4, "b, c": 4}, size=32, suffix=".jpg")
    bad = {"gone.jpg", "empty.jpg", "cut.jpg", "text.jpg", "folder.jpg"}
    whole = (root / "a" / "00001.jpg").read_bytes()
    (root / "a" / "empty.jpg").touch()
    (root / "a" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "a" / "text.jpg").write_text("this is not an image")
    (root / "a" / "folder.jpg").mkdir()
    good = scan(root, ["a", "b, c"])
    paths = [*good.paths, "a/gone.jpg", "a/folder.jpg"]
    index = Index(root, tuple(paths), np.zeros(len(paths), dtype=np.int64))
    for read_all in all_batches(index, workers):
        with pytest.raises(UserError, match=r"^data: 5 unreadable image\(s\)") as caught:
            read_all()
        lines = caught.value.what.splitlines()[1:]
        assert sorted(line.strip().split(": ")[0] for line in lines) == sorted(str(root / "a" / name) for name in bad)


def test_batches_before_an_unreadable_file_are_delivered(removable: Index) -> None:
    (removable.root / removable.paths[4]).write_bytes(b"")
    stream = evaluation_batches(removable, np.arange(6), SPEC, 2, loader_config(), BadFiles())
    assert [next(stream)[1].tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(UserError, match=removable.paths[4]):
        next(stream)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unreadable_files_are_skipped_and_listed(removable: Index, backend: Loader) -> None:
    for number, content in ((1, b""), (4, b"no image")):
        (removable.root / removable.paths[number]).write_bytes(content)
    bad = BadFiles("skip")
    found = list(evaluation_batches(removable, np.arange(6), SPEC, 2, loader_config(0, 0, backend, "skip"), bad))
    assert [positions.tolist() for _, positions in found] == [[0], [2, 3], [5]]
    assert [file.path for file in bad.files] == [removable.paths[1], removable.paths[4]]
    assert all(file.reason for file in bad.files)
    data = training_set(removable, 2, backend=backend, on_bad="skip")
    assert [sorted(order) for order in orders(read(data, 0, 3))] == [[0, 0, 1, 1]] * 3
    assert len(data.bad.skipped) == 6 and len(data.bad.files) == 2
    for mib in (0, 1):
        val = ValidationSet(removable, SPEC, 4, loader_config(0, mib, backend, "skip"))
        for _ in range(2):
            assert sum(len(labels) for _, labels in val.batches()) == 4
        assert [file.position for file in val.bad.files] == [1, 4]


def test_tables_of_skipped_files(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    one, two = bad_files.BadFile(3, "a b/é,.png", "is empty"), bad_files.BadFile(5, "00010/x.jpg", 'says "no"')
    bad_files.write(run.teacher / bad_files.TABLE, {"train": [one], "val": []})
    bad_files.write(run.rank / f"00003.{bad_files.TABLE}", {"train": [one, two]})
    bad_files.write(run.rank / f"00004.{bad_files.TABLE}", {"train": []})
    assert not (run.rank / f"00004.{bad_files.TABLE}").exists()
    assert bad_files.gather(run).to_numpy().tolist() == [
        ["train", "a b/é,.png", "is empty"],
        ["train", "00010/x.jpg", 'says "no"'],
    ]
