"""A process is never taken for another one, and never signalled in its place."""

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from delt_hpc.launch.process import ProcessIdentity


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_process_is_signalled_while_it_runs(child: "subprocess.Popen[bytes]") -> None:
    identity = ProcessIdentity.of(child.pid)
    assert identity is not None and identity.alive()
    assert identity.send(signal.SIGTERM)
    assert child.wait() == -signal.SIGTERM
    assert not identity.alive()
    assert not identity.send(signal.SIGTERM)


def test_a_later_process_with_the_same_number_is_not_signalled(child: "subprocess.Popen[bytes]") -> None:
    """As PID 1 of a container that was started again."""
    identity = ProcessIdentity.of(child.pid)
    assert identity is not None
    earlier = replace(identity, started=identity.started - 1)
    assert earlier.alive() is False
    assert not earlier.send(signal.SIGKILL)
    assert child.poll() is None


@pytest.mark.parametrize("elsewhere", [{"boot": "another boot"}, {"namespace": "pid:[1]"}])
def test_a_process_elsewhere_is_neither_alive_nor_dead_and_not_signalled(
    child: "subprocess.Popen[bytes]", elsewhere: dict[str, str]
) -> None:
    identity = ProcessIdentity.of(child.pid)
    assert identity is not None
    other = replace(identity, **elsewhere)
    assert other.alive() is None
    assert not other.send(signal.SIGKILL)
    assert child.poll() is None


def test_a_number_without_a_process() -> None:
    assert ProcessIdentity.of(2**22 + 1) is None
    assert ProcessIdentity.of(os.getpid()) == ProcessIdentity.of(os.getpid())
