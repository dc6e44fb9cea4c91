"""Another process that holds a lock."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOLDER = """
import sys
from pathlib import Path
from delt_hpc.run.lock import locked
with locked(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), lambda: None):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(path: Path, first: int, count: int) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLDER, str(path), str(first), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()
