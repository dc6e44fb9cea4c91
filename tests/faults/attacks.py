"""Attacks on runs. Each is an iterator: a step attacks the run folder once and yields what was done.

A text that starts with `wrong` is a failure of the attacked process itself.
"""

import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from runs import OK, USER_ERROR, Measured, Runs, at_call, fork, signal_self, wait

import disks
from delt_hpc.pipeline import open_run
from delt_hpc.run import checksums
from delt_hpc.run.folder import DONE
from delt_hpc.run.progress import Reporter

WRONG = "wrong: "
Attack = Iterator[str]
Change = Callable[[bytes], bytes | None]
_NOT_DAMAGED = ("timing", "timing.csv", "locks")  # these have no checksums


def kills_at_calls(runs: Runs, measured: Measured) -> Attack:
    """Killed before the n-th call that changes the disk, for every n in random order."""
    for number in _shuffled(runs, measured.calls):
        runs.fresh(measured.work.source)
        code = runs.start(
            runs.run, measured.work.stages, lambda number=number: at_call(number, signal_self(signal.SIGKILL))
        )
        yield _unless(code in (-signal.SIGKILL, OK), runs, f"call {number}")


def kills_at_moments(runs: Runs, measured: Measured) -> Attack:
    while True:
        runs.fresh(measured.work.source)
        child = runs.begin(runs.run, measured.work.stages)
        delay = runs.random.uniform(0.0, measured.seconds)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        wait(child)
        yield f"after {delay:.3f} s"


def no_growth(runs: Runs, measured: Measured) -> Attack:
    """No file can grow beyond a limit."""
    while True:
        limit = runs.random.choice((0, 10, 200, 1000, 3000, 10_000, 50_000))

        def before(limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        runs.fresh(measured.work.source)
        runs.start(runs.run, measured.work.stages, before)
        yield f"files of at most {limit} bytes"


def full_disks(runs: Runs, measured: Measured) -> Attack:
    """A disk that has too little space for the run."""
    while True:
        kib = runs.random.randrange(8, 1500, 4)
        with disks.memory_disk(runs.folder, kib) as disk:
            code = runs.start(disk / "run", measured.work.stages)
            runs.fresh(disk / "run")
        yield _unless(code in (OK, USER_ERROR), runs, f"{kib} KiB")


def read_only_disks(runs: Runs, measured: Measured) -> Attack:
    """A disk that becomes read-only during the work, because its file system found an error."""
    while True:
        with disks.loop_disk(runs.folder) as (disk, _):
            child = runs.begin(disk / "run", measured.work.stages)
            delay = runs.random.uniform(0.0, measured.seconds)
            time.sleep(delay)
            disks.break_disk(disk)
            code = wait(child)
            runs.fresh(disk / "run")
        yield _unless(code in (OK, USER_ERROR), runs, f"after {delay:.3f} s")


def power_losses(runs: Runs, measured: Measured) -> Attack:
    """The disk as it is before the n-th call, without what was not synced; finished work must be in it."""
    for number in _shuffled(runs, measured.calls):
        with disks.loop_disk(runs.folder) as (disk, image):

            def stop(number: int = number) -> None:
                at_call(number, signal_self(signal.SIGSTOP))

            child = runs.begin(disk / "run", measured.work.stages, stop)
            os.waitpid(child, os.WUNTRACED)  # stopped; a run with fewer calls than before has ended
            done = _finished(disk / "run")
            with disks.after_power_loss(runs.folder, image) as left:
                lost = [name for name in done if checksums.faults(left / "run" / name)]
                runs.fresh(left / "run")
            try:
                os.kill(child, signal.SIGKILL)
                wait(child)
            except (ProcessLookupError, ChildProcessError):
                pass
        # The last marker may not have reached the disk: the process may have been about to sync it.
        yield f"{WRONG}call {number}: lost {lost}" if set(lost) - set(done[-1:]) else f"call {number}"


def two_processes(runs: Runs, measured: Measured, half: Path) -> Attack:
    while True:
        runs.fresh(half if runs.random.random() < 0.5 else None)
        if not runs.run.exists():
            set_up = fork(lambda: void(open_run(runs.config, runs.run, Reporter(quiet=True))), runs.log)
            assert wait(set_up) == OK, runs.log.read_text()
        logs = [runs.folder / f"log{i}" for i in range(2)]
        children = [fork(lambda: runs.work(runs.run, measured.work.stages), log) for log in logs]
        codes = [wait(child) for child in children]
        said = " ".join(log.read_text()[-300:] for log, code in zip(logs, codes, strict=True) if code)
        yield f"{WRONG}exit codes {codes} {said}" if any(codes) else ""


def damage(runs: Runs, change: Change, source: Path, below: str = "") -> Attack:
    """A file of the run folder is changed, or deleted where `change` gives nothing.

    Args:
        below: the folder whose files are damaged; all unless given.
    """
    while True:
        found = (path.relative_to(source) for path in sorted((source / below).rglob("*")) if path.is_file())
        files = [path for path in found if path.parts[0] not in _NOT_DAMAGED]
        runs.random.shuffle(files)
        for path in files:
            runs.fresh(source)
            changed = change((source / path).read_bytes())
            if changed is None:
                (runs.run / path).unlink()
            else:
                (runs.run / path).write_bytes(changed)
            yield path.as_posix()


def delete(content: bytes) -> None:
    """The file is removed."""


def cut_to_nothing(content: bytes) -> bytes:
    return b""


def halve(content: bytes) -> bytes:
    return content[: len(content) // 2]


def cut_a_line(content: bytes) -> bytes:
    return b"".join(content.splitlines(keepends=True)[:-1])


def flip_a_bit(content: bytes) -> bytes:
    place, changed = random.randrange(max(1, len(content))), bytearray(content)
    if changed:
        changed[place] ^= 1 << random.randrange(8)
    return bytes(changed)


def stop_in_recovery(runs: Runs, measured: Measured, root: Path) -> None:
    """Make a run at `root` that was killed between two checkpoints of recovery."""

    def before() -> None:
        replace, seen = os.replace, [0]

        def counting(source: str, target: str, **given: int) -> None:
            replace(source, target, **given)
            seen[0] += str(target).endswith("checkpoint.pt")
            if seen[0] == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = counting

    assert runs.start(root, measured.work.stages, before) == -signal.SIGKILL
    assert list(root.glob("recover/*/checkpoint.pt"))


def void(_: object) -> None:
    """Drop a result."""


def _shuffled(runs: Runs, calls: int) -> list[int]:
    order = list(range(1, calls + 1))
    runs.random.shuffle(order)
    return order


def _unless(good: bool, runs: Runs, case: str) -> str:
    return case if good else f"{WRONG}{case}: {runs.log.read_text()[-300:]}"


def _finished(run: Path) -> list[str]:
    """The folders of the run that are marked as done, in the order in which they were."""
    markers = sorted(run.rglob(DONE), key=lambda path: path.stat().st_mtime_ns)
    return [path.parent.relative_to(run).as_posix() for path in markers]
