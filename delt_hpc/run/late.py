"""Results of other nodes: a network file system may show them late, because it remembers that they were not there."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from delt_hpc.run import stop
from delt_hpc.run.folder import DONE, is_done

# The seconds for which a job looks again, set by its script; nobody waits where it is not set.
VARIABLE, SECONDS = "DELT_LATE_SECONDS", 60
_POLL_SECONDS = 2.0


def all_done(folders: Sequence[Path]) -> bool:
    """Whether all these inputs of a stage are finished. A job looks again for a while before it says no.

    Raises:
        Interrupted: a stop was requested meanwhile.
    """
    end = time.monotonic() + float(os.environ.get(VARIABLE, "0"))
    while not all(seen(folder) for folder in folders):
        if time.monotonic() >= end:
            return False
        stop.check()
        time.sleep(_POLL_SECONDS)
    return True


def seen(folder: Path) -> bool:
    """`is_done`, but not deceived by a file system that remembers that the marker was not there.

    Listing the folders makes the file system ask its server again.
    """
    return is_done(folder) or (folder.name in names(folder.parent) and DONE in names(folder))


def settled(folder: Path, faults: Callable[[], list[str]]) -> list[str]:
    """The faults of a finished folder that are still there after a job has looked again for a while.

    A marker may be seen before a file that is older. Listing the folder and those in it makes the file system ask
    its server again.

    Raises:
        Interrupted: a stop was requested meanwhile.
    """
    end = time.monotonic() + float(os.environ.get(VARIABLE, "0"))
    while (found := faults()) and time.monotonic() < end:
        stop.check()
        time.sleep(_POLL_SECONDS)
        for listed in (folder.parent, *(folder / name for name in names(folder))):
            names(listed)
    return found


def names(folder: Path) -> set[str]:
    """The names in a folder; none if there is no such folder."""
    try:
        return {entry.name for entry in os.scandir(folder)}
    except (FileNotFoundError, NotADirectoryError):
        return set()
