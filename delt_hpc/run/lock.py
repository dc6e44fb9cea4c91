"""Locks between processes that work on the same run folder. They end with their process, even if it is killed."""

import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from delt_hpc.errors import UserError
from delt_hpc.run import stop
from delt_hpc.run.folder import make_folder

_POLL_S = 0.2


@contextmanager
def locked(path: Path, first: int, count: int, waits: Callable[[], None]) -> Iterator[None]:
    """Hold the numbers first .. first + count - 1 of a lock file; wait while another process holds one of them.

    Where no lock is possible (a file system without locks, a folder that cannot be written to) nothing is held. The
    locks are POSIX record locks, which also work over NFS.

    Args:
        waits: called once if another process holds one of the numbers.

    Raises:
        Interrupted: a stop was requested while waiting.
    """
    with ExitStack() as stack:
        try:
            make_folder(path.parent)
            file = stack.enter_context(path.open("a+b"))
            _wait(file, first, count, waits)
        except OSError:
            pass
        yield


@contextmanager
def all_locked(folder: Path, names: Iterable[str]) -> Iterator[None]:
    """Hold these lock files whole. Where no lock is possible, nothing is held.

    Raises:
        UserError: another process holds a part of one of them.
    """
    with ExitStack() as stack:
        for name in names:
            try:
                make_folder(folder)
                file = stack.enter_context((folder / name).open("a+b"))
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise UserError(
                    f"a process works on the stage `{name}` of this run",
                    where=str(folder.parent),
                    remedy="wait for it, or stop it",
                ) from None
            except OSError:
                pass
        yield


def _wait(file: IO[bytes], first: int, count: int, waits: Callable[[], None]) -> None:
    announced = False
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, count, first, os.SEEK_SET)
            return
        except (BlockingIOError, PermissionError):  # held by another process
            if not announced:
                waits()
                announced = True
            stop.check()
            time.sleep(_POLL_S)
