"""Reading and writing in the background: order, errors, waiting."""

import threading
import time

import pytest

from delt_hpc.run.async_files import MAX_PENDING_WRITES, AsyncFiles
from delt_hpc.run.stop import Interrupted


def test_writes_happen_in_order_and_are_done_at_the_end() -> None:
    written: list[int] = []
    with AsyncFiles() as files:
        for number in range(40):
            files.write(written.append, number)
    assert written == list(range(40))


def test_a_failed_write_is_not_lost() -> None:
    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), AsyncFiles() as files:
        files.write(fail)


def test_a_failed_write_stops_the_next_one() -> None:
    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), AsyncFiles() as files:
        files.write(fail)
        for _ in range(MAX_PENDING_WRITES + 1):
            files.write(lambda: None)
        pytest.fail("the error came too late")


def test_an_error_of_the_context_comes_first_and_writes_are_finished() -> None:
    written: list[int] = []

    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(KeyboardInterrupt), AsyncFiles() as files:
        files.write(written.append, 1)
        files.write(fail)
        files.write(written.append, 2)
        raise KeyboardInterrupt
    assert written == [1, 2]


def test_a_requested_stop_does_not_hide_a_failed_write() -> None:
    def fail() -> None:
        time.sleep(0.05)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), AsyncFiles() as files:
        files.write(fail)
        raise Interrupted


def test_another_error_mentions_the_failed_write() -> None:
    def fail() -> None:
        time.sleep(0.05)
        raise OSError("disk full")

    with pytest.raises(ValueError, match="broken") as caught, AsyncFiles() as files:
        files.write(fail)
        raise ValueError("broken")
    assert "disk full" in caught.value.__notes__[0]


def test_reading_does_not_wait_for_writing() -> None:
    read = threading.Event()
    with AsyncFiles() as files:
        files.write(lambda: read.wait(10) or None)
        result = files.read(lambda: read.set() or "images")
        assert result.result(10) == "images"


def test_pending_writes_are_limited() -> None:
    release, waiting, most = threading.Event(), [0], [0]
    released = threading.Timer(0.2, release.set)
    released.start()

    def write() -> None:
        release.wait(10)
        waiting[0] -= 1

    with AsyncFiles() as files:
        for _ in range(3 * MAX_PENDING_WRITES):
            waiting[0] += 1
            most[0] = max(most[0], waiting[0])
            files.write(write)
    assert most[0] <= MAX_PENDING_WRITES + 2
    assert waiting[0] == 0
