from pathlib import Path

import pytest

from delt_hpc.config.class_range import ClassRange
from delt_hpc.errors import UserError
from delt_hpc.launch import cancel, logs
from delt_hpc.launch.plan import Task
from delt_hpc.launch.records import LaunchFolder
from delt_hpc.launch.status import Row
from delt_hpc.run.folder import RunFolder
from delt_hpc.training.trial import Trial

TRIAL = Trial("convnet3", 1, "random-soft")
ROWS = [
    Row(Task("rank", ClassRange(0, 9)), "done", job="3"),
    Row(Task("recover", ClassRange(0, 3)), "running", executor="slurm", job="4_0"),
    Row(Task("recover", ClassRange(4, 9)), "failed", job="4_1"),
    Row(Task("evaluate", trial=TRIAL), "pending", executor="slurm", job="5"),
]


@pytest.mark.parametrize(
    ("what", "found"),
    [
        (None, [0, 1, 2, 3]),
        ("recover", [1, 2]),
        ("00004-00009", [0, 2]),  # a range of status is a range of classes
        ("recover-00004-00009", [2]),
        ("2", [0, 1]),
        ("3-4", [0, 1, 2]),
        ("convnet3-1-random-soft", [3]),
    ],
)
def test_tasks_are_selected_by_stage_range_or_trial(what: str | None, found: list[int]) -> None:
    assert logs.chosen(ROWS, what, failed=False) == [ROWS[i] for i in found]


def test_failed_tasks_and_no_tasks() -> None:
    assert logs.chosen(ROWS, None, failed=True) == [ROWS[2]]
    with pytest.raises(UserError, match="no failed task"):
        logs.chosen(ROWS, "rank", failed=True)
    with pytest.raises(UserError, match="no such task"):
        logs.chosen(ROWS, "squeeze", failed=False)


def test_following_continues_in_the_log_after_a_restart(tmp_path: Path) -> None:
    first, second = tmp_path / "t.1.r0.log", tmp_path / "t.1.r1.log"
    first.write_text("one\ntw")
    looks = 0

    def ended() -> bool:
        nonlocal looks
        looks += 1
        if looks == 2:
            first.write_text("one\ntwo\n")
        if looks == 3:
            second.write_text("three\nlast")
        return looks == 3

    found = list(logs.follow(lambda: [path for path in (first, second) if path.exists()], ended))
    assert found == [f"==> {first} <==", "one", "two", f"==> {second} <==", "three", "last"]


def test_without_a_log_of_the_task_the_output_of_its_job_is_shown(tmp_path: Path) -> None:
    written = tmp_path / "run-recover.4_1.out"
    written.write_text("module: not found\n")
    (tmp_path / "run-recover.14_1.out").touch()
    assert logs.files(ROWS[2], tmp_path) == [written]


def test_live_tasks_by_stage_and_classes() -> None:
    assert cancel.live_rows(ROWS) == [ROWS[1], ROWS[3]]
    assert cancel.live_rows(ROWS, ("evaluate",)) == [ROWS[3]]
    assert cancel.live_rows(ROWS, None, [ClassRange(3, 20)]) == [ROWS[1]]
    assert cancel.live_rows(ROWS, None, [ClassRange(4, 20)]) == []
    assert cancel.live_rows(ROWS, None, [ClassRange(0, 0), ClassRange(7, 8)]) == [ROWS[1]]


def test_a_process_of_another_host_cannot_be_cancelled_from_here(tmp_path: Path) -> None:
    there = Row(Task("select"), "running", executor="local", job="1", node="elsewhere")
    assert cancel.cancel_rows(LaunchFolder(RunFolder(tmp_path)), [there]) == [there]
