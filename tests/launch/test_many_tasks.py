"""`status` of a run of some 300 tasks: Slurm is asked once, and one small file is read for each task."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.load import load_config
from delt_hpc.launch import queue, records, status
from delt_hpc.launch.plan import Task
from delt_hpc.launch.records import LaunchFolder, Submission
from delt_hpc.run.folder import RunFolder, mark_done

TASKS = tuple(Task("rank", ClassRange(i, i)) for i in range(300))
CONFIG = load_config("digits", ["recover.batch_size=3"])


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[list[Path]]:
    """The files below `tmp_path` that this process opens."""
    found: list[Path] = []
    active = True

    def hook(event: str, arguments: tuple[object, ...]) -> None:  # cannot be removed again
        if active and event == "open" and str(arguments[0]).startswith(str(tmp_path)):
            found.append(Path(str(arguments[0])))

    sys.addaudithook(hook)
    yield found
    active = False


def test_slurm_is_asked_once_and_one_file_is_read_for_each_task(
    tmp_path: Path, opened: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    folder = LaunchFolder(run)
    mark_done(run.teacher)
    records.write_submission(folder, Submission("slurm", "x", "h", records.now(), "7", True, "rank", TASKS, 300))
    for position, task in enumerate(TASKS):
        records.append_event(folder, task, records.new_event("started", f"7_{position}", 0))
    asked: list[str] = []

    def call(*command: str) -> str:
        asked.append(command[0])
        return "".join(f"7_{i}|RUNNING|n{i % 40}|1:00|None\n" for i in range(300))

    monkeypatch.setattr(queue, "call", call)
    opened.clear()
    rows, problem = status.read(CONFIG, run, 300)
    assert ([row.state for row in rows].count("running"), problem, asked) == (300, "", ["squeue"])
    assert len([path for path in opened if path.parent == folder.tasks]) == 300
    assert len(opened) < 310
