"""Stopping on SIGTERM: the signal is only noted; the work stops at the next point where its state is consistent."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM


class Interrupted(BaseException):
    """The work stopped on request; the same command resumes it."""


_requested: list[int] = []


@contextmanager
def on_sigterm() -> Iterator[None]:
    """Inside the block, SIGTERM requests a stop instead of ending the process. For the main thread only."""
    before = signal.signal(signal.SIGTERM, _note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
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
        raise Interrupted


def _note(number: int, frame: FrameType | None) -> None:
    _requested.append(number)
