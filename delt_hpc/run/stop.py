"""A request to stop (SIGTERM): noted when it comes, obeyed between two pieces of work, when all state is consistent."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM


class Interrupted(BaseException):
    """The work stopped as it was asked to; the same command goes on from there."""


_requested: list[int] = []


@contextmanager
def on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM asks the work to stop instead of ending the process. For the main thread."""
    before = signal.signal(signal.SIGTERM, _note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _requested.clear()


def requested() -> bool:
    return bool(_requested)


def check() -> None:
    """Stop here if that was asked for.

    Raises:
        Interrupted: it was.
    """
    if _requested:
        raise Interrupted


def _note(number: int, frame: FrameType | None) -> None:
    _requested.append(number)
