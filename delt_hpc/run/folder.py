"""The run folder: where each thing lies, how files are written, and who made what.

    config.yaml dataset.json classes.csv index/{train,val}.csv
    teacher/  rank/  ranking.csv  selected/  recover/<batch>/  distilled/  evaluate/<student>-<seed>-<arm>/
    timing/*.jsonl  timing.csv  logs/  report/

Every file is written under a temporary name and renamed when it is complete. A stage (or a unit of one, where a stage
works in independent units) stamps its folder with the configuration that makes it (`made_by.json`) before it works and
writes `done.json` last.
"""

import glob
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from delt_hpc.config.schema import Config, Stage, identity
from delt_hpc.errors import UserError

STAMP, DONE, CHECKPOINT = "made_by.json", "done.json", "checkpoint.pt"
_MISSING = "(nothing)"


class RunFolder:
    """Paths of a run. Holds no state but the root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.dataset = root / "dataset.json"
        self.classes = root / "classes.csv"
        self.teacher = root / "teacher"
        self.rank = root / "rank"
        self.ranking = root / "ranking.csv"
        self.selected = root / "selected"
        self.recover = root / "recover"
        self.distilled = root / "distilled"
        self.evaluate = root / "evaluate"
        self.timing = root / "timing"
        self.timing_table = root / "timing.csv"
        self.logs = root / "logs"
        self.report = root / "report"

    def index(self, split: str) -> Path:
        return self.root / "index" / f"{split}.csv"

    def class_ranking(self, class_index: int) -> Path:
        return self.rank / f"{class_index:05d}.csv"


@contextmanager
def writing(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file that appears under `path` complete or not at all, and is on disk when the block ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        text = "b" not in mode
        with temporary.open(mode, encoding="utf-8" if text else None, newline="" if text else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under `path` complete or not at all; `path` must not exist yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{glob.escape(path.name)}.{'?' * 8}.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(path)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"is damaged: {error}", where=str(path), remedy="delete it; the stage makes it again") from None


def differences(made_by: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """One text for each value that is not the same."""
    keys = [*wanted, *(key for key in made_by if key not in wanted)]
    return [
        f"{key}: made with {made_by.get(key, _MISSING)!r}, now {wanted.get(key, _MISSING)!r}"
        for key in keys
        if made_by.get(key, _MISSING) != wanted.get(key, _MISSING)
    ]


def check_stamp(folder: Path, wanted: dict[str, Any], name: str = STAMP) -> None:
    """Refuse a folder that another configuration made; a folder without a stamp is fine."""
    if not (folder / name).exists():
        return
    found = differences(read_json(folder / name), wanted)
    if found:
        raise UserError(
            "was made by another configuration:\n    " + "\n    ".join(found),
            where=str(folder),
            remedy="give another run folder (--run), set the value back, or delete this folder to make it anew",
        )


def stamp(folder: Path, wanted: dict[str, Any], name: str = STAMP) -> None:
    """Check the folder's stamp, or write it where there is none."""
    check_stamp(folder, wanted, name)
    if not (folder / name).exists():
        write_json(folder / name, wanted)


def is_done(folder: Path) -> bool:
    return (folder / DONE).exists()


def mark_done(folder: Path, content: dict[str, Any] | None = None) -> None:
    write_json(folder / DONE, content or {})


def stage_identity(config: Config, stage: Stage, run: RunFolder) -> dict[str, Any]:
    """The configuration values a stage depends on, and which images the run was set up with."""
    dataset = read_json(run.dataset)
    return identity(config, stage) | {"data.fingerprint": dataset["fingerprint"]}


def stage_folders(run: RunFolder) -> Iterator[tuple[Stage, Path]]:
    """Every folder that carries a stamp."""
    yield "squeeze", run.teacher
    yield "rank", run.rank
    yield "select", run.selected
    yield "recover", run.recover
    yield "aggregate", run.distilled
    if run.evaluate.is_dir():
        for folder in sorted(run.evaluate.iterdir()):
            yield "evaluate", folder


def write_csv(path: Path, write: Callable[[IO[str]], None]) -> None:
    with writing(path, "w") as file:
        write(file)
