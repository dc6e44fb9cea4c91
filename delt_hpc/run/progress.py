"""Progress of long work: a live bar on a terminal, a line now and then in a log, nothing when quiet."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG_SECONDS = 20.0


class Bar:
    """One piece of work with a known number of steps."""

    def __init__(self, title: str, total: int, live: Progress | None, log: Console | None) -> None:
        self._title, self._total = title, total
        self._done = self._before = 0
        self._live, self._log = live, log
        self._task: TaskID | None = live.add_task(title, total=total, note="") if live else None
        self._started = self._logged = time.monotonic()

    def resume(self, steps: int) -> None:
        """Steps that an earlier process has done: they count, but say nothing about the speed."""
        self._done = self._before = steps
        self._started = time.monotonic()
        if self._live and self._task is not None:
            self._live.update(self._task, completed=steps)

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._done += steps
        if self._live and self._task is not None:
            self._live.update(self._task, advance=steps, note=note)
            return
        now = time.monotonic()
        if self._log and now - self._logged >= LOG_SECONDS:
            self._logged = now
            left = (now - self._started) / max(1, self._done - self._before) * (self._total - self._done)
            self._log.print(
                f"{self._title}: {self._done}/{self._total} {note} (about {left:.0f} s left)",
                highlight=False,
                markup=False,
            )


class Reporter:
    """Where a process tells what it does: standard error."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(file=sys.stderr, quiet=quiet, soft_wrap=True)
        self._quiet = quiet

    def say(self, text: str) -> None:
        """A line that stands in the log as well as on a terminal."""
        self._console.print(text, highlight=False, markup=False)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        if self._quiet or not self._console.is_terminal:
            yield Bar(title, total, None, None if self._quiet else self._console)
            return
        columns = (
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=self._console, transient=True) as live:
            yield Bar(title, total, live, None)
