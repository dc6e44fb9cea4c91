"""Small runs to attack: made in child processes, and compared with undisturbed ones."""

import errno
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from delt_hpc.config.load import parse_config
from delt_hpc.config.schema import Config, Stage
from delt_hpc.errors import UserError
from delt_hpc.pipeline import open_run, run_stages
from delt_hpc.run.progress import Reporter

# The calls at which a process is stopped: each may be the last before the power goes.
CALLS = ("fsync", "rename", "replace", "unlink", "mkdir", "open")
OK, USER_ERROR, CRASHED = 0, 2, 3
# Errors of a disk that the command line shows without a traceback; EFBIG is that of files that cannot grow.
_DISK = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EFBIG)
_NOT_COMPARED = ("done.json", "made_by.json")  # these hold times and the kind of machine


@dataclass(frozen=True)
class Work:
    """What is attacked.

    Attributes:
        name: in the table.
        stages: those that run.
        source: a run folder that they continue, if any.
        results: files and folders that are compared.
    """

    name: str
    stages: tuple[Stage, ...]
    source: Path | None
    results: tuple[str, ...]


class Measured:
    """Work that was done once without disturbance: its results, seconds, and number of calls."""

    def __init__(self, runs: "Runs", work: Work) -> None:
        self.work, calls = work, runs.folder / "calls"
        runs.fresh(work.source)
        began = time.monotonic()
        code = runs.start(runs.run, work.stages, lambda: at_call(0, lambda: None, calls))
        assert code == OK, runs.log.read_text()
        self.seconds = time.monotonic() - began
        self.calls = len(calls.read_bytes())
        self.expected = results(runs.run, work.results)


class Runs:
    """The data set, the configuration, and the run folder that is attacked."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.log, self.run = folder / "log", folder / "run"
        _make_images(folder / "images")
        self.config = _configuration(folder / "images")

    def work(self, root: Path, stages: Sequence[Stage]) -> None:
        run_stages(open_run(self.config, root, Reporter()), stages)

    def start(self, root: Path, stages: Sequence[Stage], before: Callable[[], None] = lambda: None) -> int:
        """Run the stages in a child process and return its exit code.

        Args:
            before: called in the child first.
        """
        return wait(self.begin(root, stages, before))

    def begin(self, root: Path, stages: Sequence[Stage], before: Callable[[], None] = lambda: None) -> int:
        """As `start`, without waiting; returns the child's id."""

        def work() -> None:
            before()
            self.work(root, stages)

        return fork(work, self.log)

    def fresh(self, source: Path | None = None) -> None:
        """Make the run folder a copy of `source`, or remove it."""
        shutil.rmtree(self.run, ignore_errors=True)
        if source and source.exists():
            shutil.copytree(source, self.run)

    def fault(self, measured: Measured) -> str:
        """What is wrong with the run once the command was given again; empty if nothing is."""
        for _ in range(3):
            code = self.start(self.run, measured.work.stages)
            if code == OK:
                break
            said = self.log.read_text()
            if code != USER_ERROR or "to do:" not in said:
                return f"exit {code}: {said[-300:]}"
            self._follow(said)
        else:
            return f"the remedy does not work: {self.log.read_text()[-300:]}"
        found, expected = results(self.run, measured.work.results), measured.expected
        left = [path.name for path in self.run.rglob(".*.tmp")]
        if left:
            return f"temporary files of dead processes are left: {left}"
        different = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        return f"other results: {different[:4]}" if different else ""

    def _follow(self, said: str) -> None:
        """Delete what the remedy of an error says is to be deleted."""
        where = Path(said[said.rindex("error: ") :].removeprefix("error: ").partition(": ")[0])
        assert where.is_relative_to(self.run), said
        if "delete dataset.json" in said:
            (self.run / "dataset.json").unlink()
        elif "delete it;" in said:
            where.unlink()
        elif "delete this folder" in said:
            shutil.rmtree(where)


def fork(work: Callable[[], None], log: Path) -> int:
    """Start `work` in a child process and return its id; its output goes to `log`."""
    child = os.fork()
    if child:
        return child
    code = CRASHED
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        try:
            work()
            code = OK
        except UserError as error:
            code = USER_ERROR
            os.write(2, f"error: {error}\n".encode())
        except BaseException as error:
            code = USER_ERROR if isinstance(error, OSError) and error.errno in _DISK else CRASHED
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        # Whatever happens, also where the log cannot grow: the child must not clean up after its parent.
        os._exit(code)


def wait(child: int) -> int:
    """The child's exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_call(number: int, act: Callable[[], None], counted: Path | None = None) -> None:
    """Call `act` before the call of that number, from 1, that changes the disk.

    Args:
        counted: a file that gets a byte for each call.
    """
    seen = 0
    file = counted.open("wb", buffering=0) if counted else None

    def patched(name: str) -> Callable[..., Any]:
        function = getattr(os, name)

        def call(*given: Any, **named: Any) -> Any:
            nonlocal seen
            seen += 1
            if file:
                file.write(b".")
            if seen == number:
                act()
            return function(*given, **named)

        return call

    for name in CALLS:
        setattr(os, name, patched(name))


def signal_self(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def results(root: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The content of all results."""
    files = [
        path for name in names for path in ([root / name] if (root / name).is_file() else (root / name).rglob("*"))
    ]
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(files)
        if path.is_file() and path.name not in _NOT_COMPARED
    }


def _make_images(root: Path) -> None:
    numbers = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for folder in ("00010", "10", "two words"):
            (root / split / folder).mkdir(parents=True)
            for number in range(count):
                pixels = numbers.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / folder / f"{number}.png")


def _configuration(root: Path) -> Config:
    tree: dict[str, Any] = {
        "data": {"name": "toy", "root": str(root), "size": 8, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
        "squeeze": {"epochs": 2, "warmup_epochs": 0, "batch_size": 16, "lr": 0.02},
        "rank": {"batch_size": 4},  # fewer than a class has
        "select": {"ipc": 2},
        "recover": {"iterations": 8, "round_iterations": 4, "batch_size": 2, "checkpoint_seconds": 0.0},
        "evaluate": {"epochs": 2, "seeds": [1], "batch_size": 6, "arms": ["distilled-soft"]},
        "machine": {"device": "cpu", "workers": 0, "loader": "torchvision"},
    }
    return parse_config(tree, "faults")
