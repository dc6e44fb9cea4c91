"""Checksums of the files of finished work: listed in its marker, compared before the files are read.

`done.json` of a stage (or of a unit of it) lists the size and the BLAKE2b hash of every file beside it. Records that
are not listed anywhere (`dataset.json`) carry a hash of their own content. `removed.json` names the files of a finished
folder that `delt-hpc clean` removed, each with the copy that takes its place.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from delt_hpc.errors import UserError, some
from delt_hpc.run import late
from delt_hpc.run.folder import CHECKPOINT, DONE, STAMP, is_done, is_temporary, read_json, write_json

FILES, CHECKSUM = "files", "checksum"
REMOVED = "removed.json"
HASH_BYTES = 16
_THREADS = 8  # hashing and reading release the interpreter's lock
Listing = dict[str, dict[str, Any]]


def of_bytes(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=HASH_BYTES).hexdigest()


def of_file(path: Path) -> str:
    """The hash of a file's content. A file that did not change is read once per process.

    Raises:
        OSError: the file cannot be read.
    """
    status = path.stat()
    return _of_file(os.fspath(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=2**20)
def _of_file(path: str, *_: int) -> str:
    with open(path, "rb") as file:  # noqa: PTH123 - much faster than Path for many small files
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=HASH_BYTES)).hexdigest()


def listing(folder: Path, paths: Iterable[Path] | None = None) -> Listing:
    """Size and hash of every file below the folder, by relative path.

    Args:
        paths: the files to list; all but markers, checkpoints and temporary files unless given.
    """
    if paths is None:
        paths = (
            path
            for path in sorted(folder.rglob("*"))
            if path.name not in (DONE, CHECKPOINT, REMOVED) and not is_temporary(path) and path.is_file()
        )
    chosen = list(paths)
    with ThreadPoolExecutor(_THREADS) as pool:
        hashes = pool.map(of_file, chosen)
        return {
            Path(os.path.relpath(path, folder)).as_posix(): {"bytes": path.stat().st_size, "blake2b": digest}
            for path, digest in zip(chosen, hashes, strict=True)
        }


def faults(folder: Path, names: Sequence[str] | None = None, *, outside: bool = True) -> list[str]:
    """The files of a finished folder that are missing or changed, one line each.

    Args:
        names: the files to check; all that `done.json` lists unless given.
        outside: also check copies outside the run folder (training images) that take the place of removed files.
    """
    path = folder / DONE
    try:
        status = path.stat()
        listed = _listed(path, status.st_ino, status.st_size, status.st_mtime_ns)
        wanted = listed if names is None else {name: listed.get(name) for name in names}
        if not outside and (copies := _copies(folder)):
            wanted = {name: facts for name, facts in wanted.items() if not Path(copies.get(name, "")).is_absolute()}
        return changed(folder, wanted)
    except UserError as error:
        return [f"{DONE}: {error.what}"]
    except FileNotFoundError:
        return [f"{DONE}: missing"]
    except (AttributeError, KeyError, TypeError):
        return [f"{DONE}: is damaged"]


@lru_cache(maxsize=64)
def _listed(path: Path, *_: int) -> Listing:
    listed: Listing = read_json(path)[FILES]
    return listed


def located(folder: Path, name: str) -> str:
    """Where a file of a finished folder is: its name, or the path of the copy that takes its place (`removed.json`).

    Both are paths relative to the folder, or absolute.
    """
    copy = _copies(folder).get(name)
    return name if copy is None or (folder / name).exists() else copy


def write_copies(folder: Path, copies: Mapping[str, str]) -> None:
    """Add to `removed.json`: file -> its copy, relative to the folder, or an absolute path outside the run folder."""
    write_json(folder / REMOVED, {**_copies(folder), **copies})


def _copies(folder: Path) -> dict[str, str]:
    path = folder / REMOVED
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return _read_copies(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _read_copies(path: Path, *_: int) -> dict[str, str]:
    copies: dict[str, str] = read_json(path)
    return copies


def changed(folder: Path, wanted: Mapping[str, dict[str, Any] | None]) -> list[str]:
    """The files of a listing that are missing or changed, one line each."""
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda item: _fault(folder / located(folder, item[0]), item[1]), wanted.items())
        return [f"{name}: {fault}" for name, fault in zip(wanted, found, strict=True) if fault]


def _fault(path: Path, listed: dict[str, Any] | None) -> str:
    if listed is None:
        return f"not listed in {DONE}"
    try:
        size = path.stat().st_size
        if size != listed["bytes"]:
            return f"{size} bytes instead of {listed['bytes']}"
        return "" if of_file(path) == listed["blake2b"] else "its content has changed"
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def require(folder: Path, stage: str, names: Sequence[str] | None = None) -> None:
    """Check files of a finished folder before they are read.

    Args:
        stage: the stage that made the folder.
        names: the files to check; all that `done.json` lists unless given.

    Raises:
        UserError: names the files that are missing or changed.
    """
    found = late.settled(folder, lambda: faults(folder, names))
    if found and not faults(folder, names, outside=False):
        raise UserError(
            f"{len(found)} image(s) that `delt-hpc clean` removed are no longer in the data set:\n    " + some(found),
            where=str(folder),
            remedy=f"restore the data set, or delete {folder / DONE} and run the stage `{stage}` again",
        )
    if found:
        raise UserError(
            f"{len(found)} file(s) are missing or changed since the stage `{stage}` wrote them:\n    " + some(found),
            where=str(folder),
            remedy=f"run the stage `{stage}` again: it sets the damaged files aside and makes them again",
        )


def has_damaged_stamp(folder: Path) -> bool:
    """Whether the stamp of a finished folder was changed. Then it says nothing; the stage makes the folder again."""
    return is_done(folder) and (folder / STAMP).exists() and bool(faults(folder, [STAMP]))


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with a hash of its own content."""
    write_json(path, content | {CHECKSUM: _seal(content)})


def read_sealed(path: Path, remedy: str) -> dict[str, Any]:
    """Read what `write_sealed` wrote.

    Raises:
        UserError: the content was changed.
    """
    try:
        content = read_json(path)
    except UserError as error:
        raise UserError(error.what, where=str(path), remedy=remedy) from None
    if not isinstance(content, dict) or content.pop(CHECKSUM, None) != _seal(content):
        raise UserError("was changed or is damaged: its checksum does not match", where=str(path), remedy=remedy)
    return content


def _seal(content: dict[str, Any]) -> str:
    return of_bytes(json.dumps(content, sort_keys=True, ensure_ascii=True).encode())
