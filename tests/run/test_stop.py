"""Requests to stop: noted, obeyed at the next check, and forgotten afterwards."""

import signal

import pytest

from delt_hpc.run import stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_work_at_the_next_check(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    reached = False
    with pytest.raises(stop.Interrupted) as interrupted, stop.on_signal():
        stop.check()
        signal.raise_signal(number)
        reached = stop.requested()
        stop.check()
    assert reached
    assert interrupted.value.exit_code == 128 + number
    assert not stop.requested()
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_ends_the_work_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), stop.on_signal():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == "stopping after this step; Ctrl-C again stops at once\n"


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop.on_signal():
            signal.raise_signal(signal.SIGINT)
            assert not stop.requested()
    finally:
        signal.signal(signal.SIGINT, before)


DEATH = "DataLoader worker (pid 12) is killed by signal: Terminated. "


def test_a_worker_s_death_after_a_request_counts_as_the_stop() -> None:
    with pytest.raises(stop.Interrupted), stop.on_signal():
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError(DEATH)


def test_any_other_error_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="pid 12"), stop.on_signal():
        raise RuntimeError(DEATH)
    with pytest.raises(RuntimeError, match="out of memory"), stop.on_signal():
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("out of memory")
