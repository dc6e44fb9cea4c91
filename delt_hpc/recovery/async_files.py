"""Files beside the computation: images of coming batches are read ahead, results and checkpoints written behind."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from delt_hpc.run.stop import Interrupted

T = TypeVar("T")
WRITES = 16  # waiting at most: each holds images in memory


class Background:
    """One thread that reads and one that writes, in the order of the calls. Leaving the context waits for both.

    An error of a write is raised by the next `write`, or at the end of the context; where the context ends by another
    error it is noted on that one, but a mere stop is no reason to pass over it.
    """

    def __init__(self) -> None:
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._writes: deque[Future[None]] = deque()

    def __enter__(self) -> "Background":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.shutdown(cancel_futures=True)
        self._writer.shutdown()
        if error is None or isinstance(error, Interrupted):
            self._settle(0)
            return
        for write in self._writes:
            if (failed := write.exception()) is not None:
                error.add_note(f"before that, a file could not be written: {failed!r}")

    def read(self, work: Callable[[], T]) -> "Future[T]":
        return self._reader.submit(work)

    def write(self, work: Callable[..., None], *values: Any) -> None:
        self._writes.append(self._writer.submit(work, *values))
        self._settle(WRITES)

    def _settle(self, allowed: int) -> None:
        """Collect finished writes, and wait until no more than allowed are left."""
        while self._writes and (self._writes[0].done() or len(self._writes) > allowed):
            self._writes.popleft().result()
