"""Stopping on SIGTERM or Ctrl-C: the signal is only noted; the work stops at the next point of consistent state."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM

# How PyTorch's error begins when a process that loads images has died.
_WORKER_DEATH = "DataLoader worker (pid"


class Interrupted(BaseException):
    """The work stopped on request; the same command resumes it.

    Attributes:
        exit_code: 128 + the number of the signal.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(f"signal {number}")
        self.exit_code = 128 + number


_requested: list[int] = []


@contextmanager
def on_signal() -> Iterator[None]:
    """Inside the block, SIGTERM and the first Ctrl-C request a stop instead of ending the process.

    For the main thread only. After such a request, an error because a process that loads images has died counts as the
    stop. A second Ctrl-C raises KeyboardInterrupt at once. SIGINT stays ignored where it was.

    Raises:
        Interrupted: the work stopped on request.
    """
    numbers = [signal.SIGTERM, *([] if signal.getsignal(signal.SIGINT) == signal.SIG_IGN else [signal.SIGINT])]
    before = {number: signal.signal(number, _note) for number in numbers}
    try:
        yield
    except RuntimeError as error:
        if _requested and str(error).startswith(_WORKER_DEATH):
            raise Interrupted(_requested[0]) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested.clear()


def requested() -> bool:
    """Whether a stop was requested."""
    return bool(_requested)


def check() -> None:
    """Stop here if a stop was requested.

    Raises:
        Interrupted: a stop was requested.
    """
    if _requested:
        raise Interrupted(_requested[0])


def _note(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        if signal.SIGINT in _requested:
            raise KeyboardInterrupt
        os.write(2, b"stopping after this step; Ctrl-C again stops at once\n")  # sys.stderr may be in use
    _requested.append(number)
