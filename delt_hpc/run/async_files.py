"""Reads and writes files while the device computes: images of the next batches, results and checkpoints."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from delt_hpc.run.stop import Interrupted

T = TypeVar("T")
MAX_PENDING_WRITES = 16  # each holds the images of a batch in memory


class AsyncFiles:
    """One thread that reads and one that writes, each in the order of the calls.

    Leaving the context waits for all writes. An error of a write is raised by a later `write` or at the end of the
    context. If the context ends by another error, the write's error is added to that one as a note; a request to stop
    (`Interrupted`) is replaced by it, because the state was not saved.

    Args:
        pending: how many writes may wait; each holds its data in memory.
    """

    def __init__(self, pending: int = MAX_PENDING_WRITES) -> None:
        self._pending = pending
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._writes: deque[Future[None]] = deque()

    def __enter__(self) -> "AsyncFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.shutdown(cancel_futures=True)
        self._writer.shutdown()
        if error is None or isinstance(error, Interrupted):
            self._wait(0)
            return
        for write in self._writes:
            if (failed := write.exception()) is not None:
                error.add_note(f"before that, a file could not be written: {failed!r}")

    def read(self, function: Callable[[], T]) -> "Future[T]":
        return self._reader.submit(function)

    def write(self, function: Callable[..., None], *args: Any) -> None:
        """Call the function in the writing thread. Blocks while too many writes are pending."""
        self._writes.append(self._writer.submit(function, *args))
        self._wait(self._pending)

    def _wait(self, allowed: int) -> None:
        """Wait until at most `allowed` writes are pending, and raise the error of a failed one."""
        while self._writes and (self._writes[0].done() or len(self._writes) > allowed):
            self._writes.popleft().result()
