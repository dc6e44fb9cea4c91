"""`status --watch` ends, with the reason and the remedy, when no job can start by itself."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from delt_hpc.cli import app
from delt_hpc.config.load import load_config
from delt_hpc.launch import queue, records, status
from delt_hpc.launch.plan import Task, whole
from delt_hpc.launch.records import LaunchFolder, Submission
from delt_hpc.run.folder import RunFolder

# What `squeue -h -r -t all -o "%i|%T|%N|%M|%r"` prints about a job, and what to do about it.
REASONS = [
    ("PENDING||0:00|launch failed requeued held", "scontrol release"),
    ("PENDING||0:00|PartitionTimeLimit", "lower minutes"),
    ("PENDING||0:00|InvalidAccount", "correct account or qos"),
    ("PENDING||0:00|InvalidQOS", "correct account or qos"),
    ("PENDING||0:00|AccountNotAllowed", "correct account or qos"),
    ("PENDING||0:00|AssocGrpGRESMinutes", "the budget is used up"),
    ("PENDING||0:00|AssocGrpCPUMinutesLimit", "the budget is used up"),
    ("REQUEUE_HOLD||0:00|JobHoldMaxRequeue", "scontrol release"),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose squeeze is job 7 of Slurm, and whose rank and select wait for it."""
    folder, config = LaunchFolder(RunFolder(tmp_path)), load_config("digits")
    for job, stage in enumerate(("squeeze", "rank", "select"), start=7):
        tasks = tuple(whole(config, stage, 10)) if stage == "rank" else (Task(stage),)  # type: ignore[arg-type]
        records.write_submission(
            folder,
            Submission("slurm", "x", "h", records.now(), str(job), len(tasks) > 1, tasks[0].stage, tasks, 10),
        )
    return tmp_path


@pytest.mark.parametrize(("line", "remedy"), REASONS)
def test_watching_ends_with_the_reason_and_the_remedy(
    run: Path, line: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = "".join(f"8_{i}|PENDING||0:00|Dependency\n" for i in range(10)) + "9|PENDING||0:00|Dependency\n"
    monkeypatch.setattr(queue, "call", lambda *command: f"7|{line}\n{waiting}" if command[0] == "squeue" else "")
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("goes on watching"))
    answer = CliRunner().invoke(app, ["status", "digits", "--run", str(run), "--watch"])
    assert answer.exit_code == status.FAILED, answer.output
    assert line.rpartition("|")[2] in answer.output and remedy in answer.output


def test_watching_goes_on_while_a_job_may_start(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class WatchedError(Exception):
        pass

    def sleep(seconds: float) -> None:
        raise WatchedError

    monkeypatch.setattr(queue, "call", lambda *command: "7|PENDING||0:00|AssocGrpGRES\n" * (command[0] == "squeue"))
    monkeypatch.setattr("time.sleep", sleep)
    answer = CliRunner().invoke(app, ["status", "digits", "--run", str(run), "--watch"])
    assert isinstance(answer.exception, WatchedError), answer.output
