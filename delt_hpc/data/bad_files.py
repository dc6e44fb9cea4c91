"""Files that are no readable images: an error that names them, or a record of what was left out. Never silence."""

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
    """A file that is no readable image; `path` as the index has it."""

    position: int
    path: str
    reason: str


class BadFiles:
    """What becomes of unreadable files.

    Attributes:
        skipped: the files left out so far, in the order they were met, again for each time they were asked for.
    """

    def __init__(self, on_bad: OnBad = "raise") -> None:
        self._on_bad = on_bad
        self.skipped: list[BadFile] = []

    def report(self, root: Path, bad: Sequence[BadFile]) -> None:
        """Take note of files.

        Raises:
            UserError: naming each of them, unless they are to be skipped.
        """
        if bad and self._on_bad == "raise":
            raise UserError(
                f"{len(bad)} unreadable image(s):\n    "
                + "\n    ".join(f"{root / file.path}: {file.reason}" for file in bad),
                where="data",
                remedy="mend or remove them and start a new run folder, or leave them out with data.on_bad=skip",
            )
        self.skipped += bad

    @property
    def files(self) -> list[BadFile]:
        """Each file once, by position."""
        return sorted({file.position: file for file in self.skipped}.values(), key=lambda file: file.position)


def write(path: Path, files: Mapping[str, Sequence[BadFile]]) -> None:
    """A table of the files left out of each split; none is written where there are none."""
    rows = [(split, file.path, file.reason) for split, bad in files.items() for file in bad]
    if rows:
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        write_csv(path, lambda file: table.to_csv(file, index=False))


def gather(run: RunFolder) -> pd.DataFrame:
    """Every file that any stage of the run left out, once: split, img_path, reason."""
    parts = [pd.DataFrame(columns=list(COLUMNS))]
    parts += [pd.read_csv(path, dtype=str, keep_default_na=False) for path in tables(run)]
    return pd.concat(parts, ignore_index=True).drop_duplicates(["split", "img_path"], ignore_index=True)


def tables(run: RunFolder) -> list[Path]:
    """The tables that were written."""
    return [
        path
        for folder in (run.teacher, run.rank, *sorted(run.evaluate.glob("*")))
        for path in sorted(folder.glob(f"*{TABLE}"))
    ]
