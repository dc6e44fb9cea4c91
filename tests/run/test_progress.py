"""Progress on standard error: lines in a log, a bar on a terminal, nothing if quiet, no harm if it is closed."""

import os
import pty
import subprocess
import sys

import pytest

from delt_hpc.run import progress
from delt_hpc.run.progress import Reporter


def work(reporter: Reporter, steps: int = 3, title: str = "rank [all]") -> None:
    with reporter.bar(title, steps) as bar:
        for step in range(steps):
            bar.advance(1, f"loss [{step}]")


@pytest.fixture
def chatty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print a line at every step."""
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)


@pytest.mark.usefixtures("chatty")
def test_a_log_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    work(Reporter())
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(" (about")[0] for line in err.splitlines()] == [
        "rank [all]: 1/3 loss [0]",
        "rank [all]: 2/3 loss [1]",
        "rank [all]: 3/3 loss [2]",
    ]
    assert err.splitlines()[2].endswith("(about 0 s left)")


def test_a_log_gets_only_an_occasional_line(capsys: pytest.CaptureFixture[str]) -> None:
    work(Reporter(), 1000)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("chatty")
def test_a_long_line_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    work(Reporter(), 1, "x" * 300)
    Reporter().say("y " * 300)
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.usefixtures("chatty")
def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(quiet=True)
    work(reporter)
    reporter.say("finished")
    assert capsys.readouterr() == ("", "")


def test_messages_are_not_interpreted_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter().say("evaluate: [red]été[/red] 12.5 %")
    assert capsys.readouterr().err == "evaluate: [red]été[/red] 12.5 %\n"


@pytest.mark.usefixtures("chatty")
def test_work_without_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter().bar("resumed", 5) as bar:
        bar.advance(0)
    assert capsys.readouterr().err.startswith("resumed: 0/5")
    work(Reporter(), 0)


BAR = """
from delt_hpc.run.progress import Reporter
reporter = Reporter({options})
with reporter.bar("rank [all]", 3) as bar:
    bar.advance(2, "loss [2]")
    reporter.say("half [way]")
    bar.advance(1, "loss [3]")
"""


def on_a_terminal(code: str) -> str:
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen([sys.executable, "-c", code], stderr=slave, env=environment) as process:
        os.close(slave)
        shown = b""
        try:
            while block := os.read(master, 65536):
                shown += block
        except OSError:  # the other side is closed
            pass
        assert process.wait() == 0
    os.close(master)
    return shown.decode()


def test_a_terminal_gets_a_bar_with_the_texts_as_they_are() -> None:
    shown = on_a_terminal(BAR.format(options=""))
    assert "\x1b[" in shown
    assert "rank [all]" in shown
    assert "3/3" in shown
    assert "loss [3]" in shown
    assert "half [way]" in shown


def test_a_quiet_terminal_stays_empty() -> None:
    assert on_a_terminal(BAR.format(options="quiet=True")) == ""


CLOSED = """
from delt_hpc.run import progress
progress.LOG_SECONDS = 0.0
reporter = progress.Reporter()
for _ in range(3):
    reporter.say("x" * 100_000)
    with reporter.bar("work", 2) as bar:
        bar.advance(2)
print("finished")
"""


def test_work_goes_on_after_the_reader_of_standard_error_is_gone() -> None:
    """As with `2>&1 | true`, or a `tee` that dies."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", CLOSED], stdout=subprocess.PIPE, stderr=writing, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stdout) == (0, "finished\n")


def test_work_goes_on_without_a_standard_error() -> None:
    closed = f'exec "{sys.executable}" -c "$0" 2>&-'
    done = subprocess.run(["sh", "-c", closed, CLOSED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "finished\n")
