"""Files beside the computation: order, errors, waiting."""

import threading
import time

import pytest

from delt_hpc.recovery.async_files import WRITES, Background
from delt_hpc.run.stop import Interrupted


def test_writes_happen_in_order_and_are_done_at_the_end() -> None:
    written: list[int] = []
    with Background() as background:
        for number in range(40):
            background.write(written.append, number)
    assert written == list(range(40))


def test_a_failed_write_is_not_lost() -> None:
    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), Background() as background:
        background.write(fail)


def test_a_failed_write_stops_the_next_one() -> None:
    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), Background() as background:
        background.write(fail)
        for _ in range(WRITES + 1):
            background.write(lambda: None)
        pytest.fail("the error came too late")


def test_the_error_of_the_work_itself_comes_first_and_writes_are_finished() -> None:
    written: list[int] = []

    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(KeyboardInterrupt), Background() as background:
        background.write(written.append, 1)
        background.write(fail)
        background.write(written.append, 2)
        raise KeyboardInterrupt
    assert written == [1, 2]


def test_a_stop_does_not_hide_that_nothing_could_be_saved() -> None:
    def fail() -> None:
        time.sleep(0.05)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), Background() as background:
        background.write(fail)
        raise Interrupted


def test_another_error_tells_of_the_failed_write_too() -> None:
    def fail() -> None:
        time.sleep(0.05)
        raise OSError("disk full")

    with pytest.raises(ValueError, match="broken") as caught, Background() as background:
        background.write(fail)
        raise ValueError("broken")
    assert "disk full" in caught.value.__notes__[0]


def test_reading_goes_on_beside_writing() -> None:
    read = threading.Event()
    with Background() as background:
        background.write(lambda: read.wait(10) or None)
        result = background.read(lambda: read.set() or "images")
        assert result.result(10) == "images"


def test_no_more_than_so_many_writes_wait() -> None:
    release, waiting, most = threading.Event(), [0], [0]
    released = threading.Timer(0.2, release.set)
    released.start()

    def write() -> None:
        release.wait(10)
        waiting[0] -= 1

    with Background() as background:
        for _ in range(3 * WRITES):
            waiting[0] += 1
            most[0] = max(most[0], waiting[0])
            background.write(write)
    assert most[0] <= WRITES + 2
    assert waiting[0] == 0
