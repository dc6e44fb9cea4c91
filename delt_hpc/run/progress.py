"""Progress of long work on standard error: a live bar on a terminal, an occasional line in a log, nothing if quiet."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

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

LOG_SECONDS = 20.0  # between two lines of a log


class Bar:
    """The progress of work with a known number of steps."""

    def __init__(self, title: str, total: int, live: Progress | None, log: Console | None) -> None:
        self._title, self._total = title, total
        self._done = self._before = 0
        self._live, self._log = live, log
        self._task: TaskID | None = live.add_task(title, total=total, note="") if live else None
        self._started = self._logged = time.monotonic()

    def resume(self, steps: int) -> None:
        """Count steps that an earlier process has done; they do not enter the estimate of the remaining time."""
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
    """Writes messages and progress to standard error. The work goes on if that is closed."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(file=cast(TextIO, _StandardError()), quiet=quiet, soft_wrap=True)
        self.quiet = quiet

    def say(self, text: str) -> None:
        """Print a line, on a terminal and in a log."""
        self._console.print(text, highlight=False, markup=False)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        if self.quiet or not self._console.is_terminal:
            yield Bar(title, total, None, None if self.quiet else self._console)
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


class _StandardError:
    """sys.stderr, but once writing fails (the reader of the pipe is gone), later output is discarded."""

    def __init__(self) -> None:
        # sys.stderr is None if the process was started with the descriptor closed.
        self._stream = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open until the end

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._discard()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _discard(self) -> None:
        """Send the descriptor to /dev/null, so that what is still buffered can be flushed at exit."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
