"""The logs of tasks: selected, shown and followed."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from delt_hpc.config.class_range import ClassRange
from delt_hpc.errors import UserError
from delt_hpc.launch.status import Row

_POLL_SECONDS = 0.5
_FAILED = ("failed", "lost")


def chosen(rows: Sequence[Row], what: str | None, *, failed: bool) -> list[Row]:
    """The rows that `what` names: a stage, classes A-B, a trial, or a task `stage-range`.

    Args:
        failed: only tasks that failed or are lost.

    Raises:
        UserError: there is no such task.
    """
    found = [row for row in rows if what is None or _names(row, what)]
    found = [row for row in found if not failed or row.state in _FAILED]
    if not found:
        raise UserError(
            "no failed task" if failed else "no such task",
            where=what or "logs",
            expected="a stage, classes A-B, or what `delt-hpc status` shows under `range`",
        )
    return found


def files(row: Row, folder: Path) -> list[Path]:
    """The task's log since its last start; without one, what its job wrote before Python started."""
    if row.log and row.log.exists():
        return [row.log]
    return sorted(folder.glob(f"*.{row.job}.out")) if row.job else []


def follow(paths: Callable[[], Sequence[Path]], ended: Callable[[], bool], tail: int | None = None) -> Iterator[str]:
    """New lines of the files as they are written, with a title line where the file changes, until `ended`.

    Args:
        paths: called repeatedly, because a requeued task writes to a new file.
        tail: of what a file holds when it is first seen, only so many lines; all by default.
    """
    places: dict[Path, int] = {}
    last: Path | None = None
    while True:
        over = ended()
        for path in paths():
            with path.open("rb") as file:
                file.seek(places.get(path, 0))
                content = file.read()
            lines = content if over else content[: content.rfind(b"\n") + 1]  # complete lines
            if not lines:
                continue
            places[path] = places.get(path, 0) + len(lines)
            if path != last:
                yield f"==> {path} <=="
                last = path
            shown = lines.decode("utf-8", "replace").splitlines()
            first = places[path] == len(lines)
            yield from shown[max(0, len(shown) - tail) :] if first and tail is not None else shown
        if over:
            return
        time.sleep(_POLL_SECONDS)


def _names(row: Row, what: str) -> bool:
    if what in (row.task.stage, row.task.unit, row.task.name):
        return True
    try:
        classes = ClassRange.parse(what)
    except UserError:
        return False
    return row.task.classes is not None and row.task.classes.overlaps(classes)
