"""The run folder: its layout, atomic writing, and the stamps and markers of the stages.

    config.yaml dataset.json classes.csv index/{train,val}.csv weights/
    teacher/  rank/  ranking.csv  selected/  recover/<batch>/  distilled/
    labels/<images>-<seed>/  evaluate/<student>-<seed>-<arm>/
    timing/*.jsonl  timing.csv  logs/  report/  broken/  locks/  tracking/

Every file and folder is written under a temporary name, synced to disk and renamed when it is complete, so a kill or
a power loss leaves either all of it or nothing. A stage (or a unit of it: a batch, a trial) stamps its folder with the
configuration it works with (`made_by.json`) first and writes `done.json` last.
"""

import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from delt_hpc.config.schema import Config, Stage, identity
from delt_hpc.errors import UserError

STAMP, DONE, CHECKPOINT = "made_by.json", "done.json", "checkpoint.pt"
RESOLVED = "resolved"  # key of a stamp: what options set to `auto` stood for
_MISSING = "(nothing)"
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{6})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp")
_ABANDONED_S = 24 * 3600.0  # after this time without a change, a temporary file of an unknown process is abandoned
_watched: dict[Path, tuple[int, int]] = {}  # device and inode of the run folders that this process works on


class RunFolder:
    """The paths of a run; nothing is read or created."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.dataset = root / "dataset.json"
        self.classes = root / "classes.csv"
        self.weights = root / "weights"  # torchvision's files
        self.teacher = root / "teacher"
        self.rank = root / "rank"
        self.ranking = root / "ranking.csv"
        self.selected = root / "selected"
        self.recover = root / "recover"
        self.distilled = root / "distilled"
        self.labels = root / "labels"
        self.evaluate = root / "evaluate"
        self.timing = root / "timing"
        self.timing_table = root / "timing.csv"
        self.logs = root / "logs"
        self.report = root / "report"
        self.broken = root / "broken"
        self.locks = root / "locks"
        self.tracking = root / "tracking"

    def index(self, split: str) -> Path:
        return self.root / "index" / f"{split}.csv"

    def class_ranking(self, class_index: int) -> Path:
        return self.rank / f"{class_index:05d}.csv"


@contextmanager
def writing(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file that appears under `path` complete or not at all, and is synced to disk when the block ends."""
    make_folder(path.parent)
    temporary = _temporary(path)
    try:
        text = "b" not in mode
        with temporary.open(mode, encoding="utf-8" if text else None, newline="" if text else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under `path` complete or not at all, and is synced to disk when the block ends.

    Write its files with plain `open`: all of them are synced together, which is much faster than one at a time.

    Raises:
        OSError: `path` exists and is not empty.
    """
    make_folder(path.parent)
    remove_leftovers(path.parent, path.name)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, files in os.walk(temporary, topdown=False):
            for name in files:
                _sync(Path(folder, name))
            _sync(Path(folder))
        temporary.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def watch(root: Path) -> None:
    """From now on, `make_folder` refuses to make anything below `root` if that folder is deleted or replaced."""
    status = root.stat()
    _watched[root.absolute()] = (status.st_dev, status.st_ino)


def make_folder(path: Path) -> None:
    """Make a folder with its parents, unless it is there.

    Raises:
        UserError: it would be in a run folder that was deleted or replaced while this process worked on it.
    """
    for root, key in _watched.items():
        if path.absolute().is_relative_to(root):
            try:
                status = root.stat()
            except FileNotFoundError:
                raise _vanished(root) from None
            if (status.st_dev, status.st_ino) != key:
                raise _vanished(root)
    path.mkdir(parents=True, exist_ok=True)


def _vanished(root: Path) -> UserError:
    return UserError(
        "was deleted or replaced during the work", where=str(root), remedy="restore it, or start a new run"
    )


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Delete the temporary files and folders of killed processes directly inside `folder`.

    Args:
        name: of the file or folder that was being written; all of them if empty.
    """
    for path in folder.glob(".*.tmp"):
        writer = _TEMPORARY.fullmatch(path.name)
        if name and not (writer and writer["name"] == name):
            continue
        if not is_abandoned(path):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Whether this is a file or folder that a process is writing, or left behind when it was killed."""
    return _TEMPORARY.fullmatch(path.name) is not None


def _temporary(path: Path) -> Path:
    """A temporary name beside `path` that says which process of which host writes it."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def is_abandoned(temporary: Path) -> bool:
    """Whether the writer is dead: its process is gone, or (on another host) it has written nothing for a day."""
    writer = _TEMPORARY.fullmatch(temporary.name)
    if writer and writer["host"] == _host():
        try:
            os.kill(int(writer["pid"]), 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # the process exists
    try:
        return time.time() - temporary.stat().st_mtime > _ABANDONED_S
    except OSError:
        return False  # its writer has just renamed it


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    with writing(path, "w") as file:
        file.write(text)


def write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"is damaged: {error}", where=str(path), remedy="delete it; the stage makes it again") from None


def differences(made_by: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """A line for each value that differs."""
    keys = [*wanted, *(key for key in made_by if key not in wanted)]
    return [
        f"{key}: made with {made_by.get(key, _MISSING)!r}, now {wanted.get(key, _MISSING)!r}"
        for key in keys
        if made_by.get(key, _MISSING) != wanted.get(key, _MISSING)
    ]


def check_stamp(folder: Path, wanted: dict[str, Any], name: str = STAMP) -> None:
    """Refuse a folder that was made with another configuration; a folder without a stamp is accepted.

    `auto` is equal to the value that it stood for when the folder was made.

    Raises:
        UserError: lists every value that differs.
    """
    if not (folder / name).exists():
        return
    made_by = read_json(folder / name)
    resolved = made_by.pop(RESOLVED, {})
    made_by |= {key: value for key, value in wanted.items() if key in made_by and _without_path(made_by[key]) == value}
    made_by |= {
        key: value for key, value in resolved.items() if made_by.get(key) == "auto" and wanted.get(key) == value
    }
    found = differences(made_by, wanted)
    if found:
        raise UserError(
            "was made with another configuration:\n    " + "\n    ".join(found),
            where=str(folder),
            remedy="choose another run folder (--run), restore the value, or delete this folder to make it again",
        )


def stamp(folder: Path, wanted: dict[str, Any], name: str = STAMP) -> None:
    """Check the folder's stamp, or write it if there is none."""
    check_stamp(folder, wanted, name)
    if not (folder / name).exists():
        write_json(folder / name, wanted)


def check_resolved(folder: Path, resolved: dict[str, str]) -> None:
    """Refuse to continue work of a machine on which options set to `auto` stood for other values.

    Args:
        resolved: option -> what it stands for on this machine.

    Raises:
        UserError: lists every option that differs.
    """
    made_by = read_json(folder / STAMP).get(RESOLVED, {}) if (folder / STAMP).exists() else {}
    found = [key for key, value in made_by.items() if resolved.get(key) != value]
    if found:
        lines = [f"{key}: made with {made_by[key]}; on this machine it is {resolved.get(key)}" for key in found]
        same = " ".join(f"--set {key}={made_by[key]}" for key in found)
        raise UserError(
            "was made on another kind of machine:\n    " + "\n    ".join(lines),
            where=str(folder),
            remedy=f"continue with {same} on a machine that allows it, or delete this folder to make it again",
        )


def stamp_resolved(folder: Path, resolved: dict[str, str]) -> None:
    """Check the resolved options in the folder's stamp, or add them if it has none."""
    check_resolved(folder, resolved)
    made_by = read_json(folder / STAMP)
    if RESOLVED not in made_by:
        write_json(folder / STAMP, made_by | {RESOLVED: resolved})


def is_done(folder: Path) -> bool:
    return (folder / DONE).exists()


def has_marker(folder: Path) -> bool:
    """Whether the folder is marked as done, by a marker that can be read."""
    try:
        return isinstance(read_json(folder / DONE), dict)
    except (OSError, UserError):
        return False


def mark_done(folder: Path, content: dict[str, Any] | None = None) -> None:
    write_json(folder / DONE, content or {})


def set_aside(run: RunFolder, path: Path) -> Path:
    """Move a folder or file of the run to broken/, and return its new place."""
    name = path.relative_to(run.root).as_posix().replace("/", "-")
    run.broken.mkdir(exist_ok=True)
    target = run.broken / f"{name}-{secrets.token_hex(4)}"
    path.rename(target)
    _sync(run.root)
    return target


def stage_identity(config: Config, stage: Stage, run: RunFolder) -> dict[str, Any]:
    """The options that the stage's results depend on, and the fingerprint of the run's images.

    For `aggregate`, whose folder is published, absolute paths are replaced by a hash.
    """
    dataset = read_json(run.dataset)
    full = identity(config, stage) | {"data.fingerprint": dataset["fingerprint"]}
    return {key: _without_path(value) for key, value in full.items()} if stage == "aggregate" else full


def _without_path(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("/"):
        return f"path {hashlib.sha256(value.encode(errors='surrogateescape')).hexdigest()[:16]}"
    return value


def stage_folders(run: RunFolder) -> Iterator[tuple[Stage, Path]]:
    """Every folder that may carry a stamp, with its stage."""
    yield "squeeze", run.teacher
    yield "rank", run.rank
    yield "select", run.selected
    yield "recover", run.recover
    yield "aggregate", run.distilled
    for units in (run.labels, run.evaluate):
        if units.is_dir():
            for folder in sorted(units.iterdir()):
                yield "evaluate", folder


def write_csv(path: Path, write: Callable[[IO[str]], None]) -> None:
    with writing(path, "w") as file:
        write(file)
