"""Unreadable image files: an error that names them, or a list of the skipped ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from delt_hpc.config.schema import OnBad
from delt_hpc.errors import UserError
from delt_hpc.run.folder import RunFolder, write_csv

TABLE = "skipped.csv"
COLUMNS = ("split", "img_path", "reason")


@dataclass(frozen=True)
class BadFile:
    """A file that cannot be read as an image; `path` is relative to the root of its index."""

    position: int
    path: str
    reason: str


class BadFiles:
    """Collects unreadable files: raises an error that names them, or skips them, as `data.on_bad` says.

    Attributes:
        skipped: the files skipped so far, in the order they were met; a file is repeated each time it is requested.
    """

    def __init__(self, on_bad: OnBad = "raise") -> None:
        self._on_bad = on_bad
        self.skipped: list[BadFile] = []

    def report(self, root: Path, bad: Sequence[BadFile]) -> None:
        """Record the files as skipped.

        Raises:
            UserError: naming each of them, if `data.on_bad` is `raise`.
        """
        if bad and self._on_bad == "raise":
            raise UserError(
                f"{len(bad)} unreadable image(s):\n    "
                + "\n    ".join(f"{root / file.path}: {file.reason}" for file in bad),
                where="data",
                remedy="repair or remove them and start a new run folder, or skip them with data.on_bad=skip;"
                " `delt-hpc check` reads every file once and names all of them",
            )
        self.skipped += bad

    @property
    def skips(self) -> bool:
        """Whether unreadable files are skipped."""
        return self._on_bad == "skip"

    @property
    def files(self) -> list[BadFile]:
        """Each skipped file once, in order of position."""
        return sorted({file.position: file for file in self.skipped}.values(), key=lambda file: file.position)


def write(path: Path, files: Mapping[str, Sequence[BadFile]]) -> None:
    """Write a table of the skipped files of each split; no file if there are none."""
    rows = [(split, file.path, file.reason) for split, bad in files.items() for file in bad]
    if rows:
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        write_csv(path, lambda file: table.to_csv(file, index=False))


def gather(run: RunFolder) -> pd.DataFrame:
    """Every file that any stage of the run skipped, once: split, img_path, reason."""
    parts = [pd.DataFrame(columns=list(COLUMNS))]
    parts += [pd.read_csv(path, dtype=str, keep_default_na=False) for path in tables(run)]
    return pd.concat(parts, ignore_index=True).drop_duplicates(["split", "img_path"], ignore_index=True)


def tables(run: RunFolder) -> list[Path]:
    """The existing tables of skipped files in the run folder."""
    return [
        path
        for folder in (run.teacher, run.rank, *sorted(run.evaluate.glob("*")))
        for path in sorted(folder.glob(f"*{TABLE}"))
    ]
