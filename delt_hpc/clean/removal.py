"""What can be removed from a run folder, and its removal.

An image is removed only where the same bytes are in another place, which `removed.json` then names: the distilled set
for the images of batches, the data set for the selected images. Readers find it there (`checksums.located`).
"""

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from delt_hpc.config.schema import Config
from delt_hpc.data.catalog.specs import root_of
from delt_hpc.data.index import ClassMap
from delt_hpc.distilled import manifest
from delt_hpc.ranking import selection
from delt_hpc.recovery.batch_folder import IMAGES
from delt_hpc.recovery.batches import plan
from delt_hpc.run import checksums
from delt_hpc.run.folder import CHECKPOINT, DONE, RunFolder, is_abandoned, is_done, is_temporary, read_json
from delt_hpc.training.trial import trials

COMPILED = "compile-cache"


@dataclass(frozen=True)
class Copy:
    """A file of a finished folder whose bytes are also in another place.

    Attributes:
        folder: of the batch, or selected/.
        name: relative to the folder.
        kept: the other place, relative to the folder or absolute.
    """

    folder: Path
    name: str
    kept: str


@dataclass(frozen=True)
class Group:
    """Files or folders that are removed for one reason.

    Attributes:
        what: the reason, for the user.
        paths: what is removed, apart from the copies.
        files: number of files, those in folders included.
        bytes: their sizes.
    """

    what: str
    paths: tuple[Path, ...]
    copies: tuple[Copy, ...]
    files: int
    bytes: int


def find(config: Config, run: RunFolder) -> list[Group]:
    """What can be removed now; groups without files are left out."""
    groups = [
        _copies("images of finished batches, also in distilled/", _distilled(run)),
        _copies("selected images, also in the data set", _selected(config, run)),
        _paths("checkpoints of finished work", _checkpoints(run)),
        _paths("stored soft labels of finished trainings, which `evaluate` can make again", _labels(config, run)),
        _paths("compiled kernels", [run.root / COMPILED]),
        _paths("damaged files that were set aside", [run.broken]),
        _paths("files that killed processes left half-written", _leftovers(run)),
    ]
    return [group for group in groups if group.files]


def remove(groups: Iterable[Group]) -> None:
    """Remove them; a kill at any moment leaves every image readable."""
    for group in groups:
        by_folder: dict[Path, list[Copy]] = defaultdict(list)
        for copy in group.copies:
            by_folder[copy.folder].append(copy)
        for folder, copies in by_folder.items():
            checksums.write_copies(folder, {copy.name: copy.kept for copy in copies})
            for copy in copies:
                (folder / copy.name).unlink(missing_ok=True)
            _remove_empty_folders(folder)
        for path in group.paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _distilled(run: RunFolder) -> Iterator[Copy]:
    """Images of batches with the same bytes in an undamaged distilled set."""
    if not is_done(run.distilled) or manifest.faults(run.distilled):
        return
    folders = ClassMap.read(run.classes).folders
    for folder in sorted(path for path in run.recover.glob("*") if is_done(path)):
        listed = read_json(folder / DONE)[checksums.FILES]
        table = pd.read_csv(folder / IMAGES, dtype={"file": str})
        for index, number, name in zip(table["class_index"], table["number"], table["file"], strict=True):
            place = run.distilled / folders[index] / f"{number:05d}{Path(name).suffix}"
            if (folder / name).exists() and _same(place, listed.get(name)):
                yield Copy(folder, name, Path(os.path.relpath(place, folder)).as_posix())


def _selected(config: Config, run: RunFolder) -> Iterator[Copy]:
    """Selected images with the same bytes in the data set, once no batch needs them any more."""
    batches = plan(len(ClassMap.read(run.classes)), config.select.ipc, config.recover)
    if not is_done(run.selected) or not all(is_done(run.recover / batch.id) for batch in batches):
        return
    train = (root_of(config.data) / config.data.train).absolute()
    listed = read_json(run.selected / DONE)[checksums.FILES]
    table = selection.read(run.selected)
    for source, name in zip(table["img_path"], table["file"], strict=True):
        if (run.selected / name).exists() and _same(train / source, listed.get(name)):
            yield Copy(run.selected, name, str(train / source))


def _same(path: Path, listed: dict[str, object] | None) -> bool:
    try:
        return listed is not None and checksums.of_file(path) == listed["blake2b"]
    except OSError:
        return False


def _checkpoints(run: RunFolder) -> list[Path]:
    folders = [run.teacher, *run.recover.glob("*"), *run.evaluate.glob("*")]
    return [folder / CHECKPOINT for folder in folders if is_done(folder)]


def _labels(config: Config, run: RunFolder) -> list[Path]:
    return [run.labels] if all(is_done(trial.folder(run)) for trial in trials(config.evaluate)) else []


def _leftovers(run: RunFolder) -> list[Path]:
    found: list[Path] = []
    for parent, folders, files in os.walk(run.root):
        here = [Path(parent, name) for name in (*folders, *files)]
        found += [path for path in here if is_temporary(path) and is_abandoned(path)]
        folders[:] = [name for name in folders if not is_temporary(Path(parent, name)) and name != run.broken.name]
    return sorted(found)


def _copies(what: str, copies: Iterable[Copy]) -> Group:
    kept = tuple(copies)
    return Group(what, (), kept, len(kept), sum((copy.folder / copy.name).stat().st_size for copy in kept))


def _paths(what: str, paths: Sequence[Path]) -> Group:
    there = tuple(path for path in paths if path.exists() or path.is_symlink())
    files = [path for top in there for path in ([top] if not top.is_dir() else top.rglob("*")) if not path.is_dir()]
    return Group(what, there, (), len(files), sum(path.lstat().st_size for path in files))


def _remove_empty_folders(folder: Path) -> None:
    for parent, _, _ in os.walk(folder, topdown=False):
        if Path(parent) != folder and not any(Path(parent).iterdir()):
            Path(parent).rmdir()
