"""What a run folder, records and Slurm's words say together."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.load import load_config
from delt_hpc.launch import cancel, queue, records, show, status
from delt_hpc.launch.markers import Markers, class_count
from delt_hpc.launch.plan import Task, whole
from delt_hpc.launch.process import ProcessIdentity
from delt_hpc.launch.queue import Entry
from delt_hpc.launch.records import LaunchFolder, Submission
from delt_hpc.launch.status import Row
from delt_hpc.run.folder import RunFolder, mark_done, write_text
from delt_hpc.training.trial import trials

CONFIG = load_config("digits", ["recover.batch_size=6", "evaluate.seeds=[1]"])  # two classes a batch
CLASSES = 10
HELD = Entry("7", "PENDING", reason="JobHoldMaxRequeue").remedy

Submitted = Callable[..., Submission]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


@pytest.fixture
def submitted(run: RunFolder) -> Submitted:
    """Puts a submission of this host on record."""

    def put(
        *tasks: Task, job: str = "0", executor: str = "local", host: str = platform.node(), time: str = ""
    ) -> Submission:
        process = ProcessIdentity.of(int(job)) if executor == "local" else None
        if process is None and host == platform.node() and executor == "local":
            process = replace(ProcessIdentity.of(os.getpid()), pid=int(job))  # it has ended
        if host != platform.node():
            process = ProcessIdentity(int(job), "another boot", "pid:[1]", 1)
        entry = Submission(
            executor,
            executor,
            host,
            time or records.now(),
            job,
            len(tasks) > 1,
            tasks[0].stage,
            tasks,
            CLASSES,
            process,
        )
        records.write_submission(LaunchFolder(run), entry)
        return entry

    return put


def row(run: RunFolder, task: Task) -> Row:
    rows, _ = status.read(CONFIG, run, CLASSES)
    return next(r for r in rows if r.task == task)


def recovered(run: RunFolder, *units: str) -> None:
    for unit in units:
        mark_done(run.recover / unit)


def test_nothing_was_submitted(run: RunFolder) -> None:
    rows, problem = status.read(CONFIG, run, CLASSES)
    assert {r.state for r in rows} == {"missing"}
    assert [r.task.unit for r in rows if r.task.stage == "recover"] == ["00000-00009"]
    assert status.exit_code(rows, problem) == status.NOT_SUBMITTED


def test_what_was_done_without_the_launcher_is_done(run: RunFolder) -> None:
    mark_done(run.teacher)
    recovered(run, "00000-00001", "00002-00003", "00006-00007")
    assert row(run, Task("squeeze")).state == "done"
    rows, _ = status.read(CONFIG, run, CLASSES)
    assert [(r.task.unit, r.state, r.done, r.total) for r in rows if r.task.stage == "recover"] == [
        ("00000-00003", "done", 12, 12),
        ("00004-00005", "missing", 0, 6),
        ("00006-00007", "done", 6, 6),
        ("00008-00009", "missing", 0, 6),
    ]


@pytest.mark.parametrize("content", ["", '{"files": {', "[]", "\0\0"])
def test_a_damaged_marker_counts_as_none(run: RunFolder, content: str) -> None:
    for folder in (run.teacher, run.selected, run.recover / "00000-00001"):
        mark_done(folder)
        write_text(folder / "done.json", content)
    found = Markers(CONFIG, run, CLASSES)
    assert not found.done_tasks("squeeze") | found.done_tasks("select") | found.done_tasks("recover")


def test_a_run_is_done_when_its_report_is_younger_than_what_it_shows(run: RunFolder) -> None:
    import os

    for folder in (run.teacher, run.rank, run.selected, run.distilled, run.report):
        mark_done(folder)
    recovered(run, *(task.unit for task in whole(CONFIG, "recover", CLASSES)))
    for trial in trials(CONFIG.evaluate):
        mark_done(trial.folder(run))
    os.utime(run.report / "done.json", (1e9, 1e9))
    assert row(run, Task("report")).state == "missing"
    os.utime(run.report / "done.json")
    rows, problem = status.read(CONFIG, run, CLASSES)
    assert status.exit_code(rows, problem) == status.ALL_DONE
    assert show.summary(rows) == f"{len(rows)} done"


def test_a_report_is_not_current_while_something_that_it_shows_is_missing(run: RunFolder) -> None:
    for folder in (run.distilled, run.report):
        mark_done(folder)
    assert not Markers(CONFIG, run, CLASSES).finished("report")


def test_markers_count_more_than_events(run: RunFolder, submitted: Submitted) -> None:
    task = Task("select")
    entry = submitted(task)
    records.append_event(LaunchFolder(run), task, records.new_event("failed", entry.job, 0, "no"))
    mark_done(run.selected)
    assert row(run, task).state == "done"


def test_a_process_that_ended_without_a_message_is_lost(run: RunFolder, submitted: Submitted) -> None:
    task = Task("select")
    submitted(task, job="999999999")
    records.append_event(LaunchFolder(run), task, records.new_event("started", "999999999", 0))
    found = row(run, task)
    assert (found.state, found.message) == ("lost", "ended without a message")
    rows, problem = status.read(CONFIG, run, CLASSES)
    assert status.exit_code(rows, problem) == status.FAILED


def test_a_task_that_reported_an_error_has_failed(run: RunFolder, submitted: Submitted) -> None:
    task, folder = Task("recover", ClassRange(0, 3)), LaunchFolder(run)
    submitted(task, job="999999999")
    for restart in (0, 1):
        records.append_event(folder, task, records.new_event("started", "999999999", restart))
    records.append_event(folder, task, records.new_event("failed", "999999999", 1, "no disk"))
    with (folder.tasks / f"{task.name}.jsonl").open("a") as file:
        file.write('{"event": "sta')  # the process was killed here
    found = row(run, task)
    assert (found.state, found.message, found.restarts, found.node) == ("failed", "no disk", 1, platform.node())
    assert found.log and found.log.name == "recover-00000-00003.999999999.r1.log"


def test_a_live_process_is_running_and_one_of_another_host_unknown(run: RunFolder, submitted: Submitted) -> None:
    lives = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1)
    try:
        here = submitted(Task("select"), job=str(lives.pid))
        assert row(run, Task("select")).state == "running"
        # Another process with the same number, later or on another machine.
        assert here.process
        later, elsewhere = replace(here.process, started=0), replace(here.process, boot="another")
        records.write_submission(LaunchFolder(run), replace(here, process=later))
        assert row(run, Task("select")).state == "lost"
        records.write_submission(LaunchFolder(run), replace(here, process=elsewhere, host="other"))
        records.append_event(LaunchFolder(run), Task("select"), records.new_event("started", here.job, 0))
        found = row(run, Task("select"))
        assert (found.state, found.message.startswith("a process on other; last sign of life")) == ("unknown", True)
        rows, problem = status.read(CONFIG, run, CLASSES)
        assert status.exit_code(rows, problem) == status.NO_ANSWER
        assert cancel.cancel_rows(LaunchFolder(run), [found]) == [found]
        assert lives.poll() is None
        assert cancel.forget_rows(LaunchFolder(run), rows) == [found]
        assert (row(run, Task("select")).state, row(run, Task("select")).message) == ("stopped", "forgotten")
    finally:
        lives.communicate(b"")


def test_a_process_elsewhere_without_a_sign_of_life_is_lost(run: RunFolder, submitted: Submitted) -> None:
    task, folder = Task("select"), LaunchFolder(run)
    here = submitted(task, job="1", host="other", time="2020-01-01T00:00:00+00:00")
    records.append_event(folder, task, records.new_event("started", here.job, 0))
    assert row(run, task).state == "unknown"
    past = time.time() - status.LOST_AFTER_SECONDS - 1
    os.utime(folder.tasks / "select-all.jsonl", (past, past))
    assert row(run, task).state == "lost"


def test_a_working_process_shows_that_it_is_alive(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    task, folder = Task("select"), LaunchFolder(run)
    monkeypatch.setattr(records, "HEARTBEAT_SECONDS", 0.01)
    records.append_event(folder, task, records.new_event("started", "1", 0))
    path = folder.tasks / "select-all.jsonl"
    os.utime(path, (1e9, 1e9))
    with records.heartbeat(folder, task):
        while path.stat().st_mtime == 1e9:
            time.sleep(0.01)


def test_the_job_of_an_interrupted_submission_is_found_by_its_comment(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, folder = Task("select"), LaunchFolder(run)
    intent = Submission(
        "slurm", "x", "h", records.now(), "", False, "select", (task,), CLASSES, name="digits-select", token="abc"
    )
    path = records.write_submission(folder, intent)
    answers = {"%F|%k": "16|other\n"}
    monkeypatch.setattr(queue, "call", lambda *command: answers.get(command[-1], ""))
    assert row(run, task).state == "missing"
    answers["%F|%k"] = "16|other\n17|delt-hpc:abc\n"
    answers[queue._SQUEUE_FORMAT] = "17|PENDING||0:00|Priority"
    assert (row(run, task).state, row(run, task).job) == ("pending", "17")
    records.set_job(path, replace(intent, time="2020-01-01T00:00:00+00:00"), "")
    answers["%F|%k"] = ""
    assert row(run, task).state == "missing"
    assert not path.exists()


def test_a_later_submission_takes_over_its_part(run: RunFolder, submitted: Submitted) -> None:
    submitted(Task("recover", ClassRange(0, 5)), Task("recover", ClassRange(6, 9)), job="999999998")
    submitted(Task("recover", ClassRange(2, 3)), job="999999999")
    rows, _ = status.read(CONFIG, run, CLASSES)
    assert [(r.task.unit, r.job) for r in rows if r.task.stage == "recover"] == [
        ("00000-00001", "999999998_0"),
        ("00002-00003", "999999999"),
        ("00004-00005", "999999998_0"),
        ("00006-00009", "999999998_1"),
    ]


def test_without_an_answer_of_slurm_nothing_is_called_lost(
    run: RunFolder, submitted: Submitted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no squeue there
    submitted(Task("select"), executor="slurm", job="7")
    rows, problem = status.read(CONFIG, run, CLASSES)
    assert "no squeue" in problem
    assert [r.state for r in rows if r.task.stage == "select"] == ["unknown"]
    assert status.exit_code(rows, problem) == status.NO_ANSWER
    mark_done(run.selected)
    assert status.read(CONFIG, run, CLASSES)[1] == ""


def state_of(entry: Entry | None, *kinds: str) -> tuple[str, str]:
    """State and message of a Slurm task with these events."""
    submission = Submission("slurm", "x", "host", records.now(), "7", False, "select", (Task("select"),), CLASSES)
    events = [records.new_event(kind, "7", 0, "why" if kind == "failed" else "") for kind in kinds]
    return status._state(LaunchFolder(RunFolder(Path("nowhere"))), status._Owner(submission, 0), entry, events, "")


@pytest.mark.parametrize(
    ("entry", "kinds", "state", "message"),
    [
        (Entry("7", "PENDING", "", "Priority"), (), "pending", "PENDING (Priority)"),
        (Entry("7", "RUNNING", "n1"), ("started",), "running", "RUNNING"),
        (Entry("7", "COMPLETING", "n1"), ("started", "stopped"), "running", "COMPLETING"),
        (
            Entry("7", "REQUEUE_HOLD", "", "JobHoldMaxRequeue"),
            (),
            "pending",
            f"REQUEUE_HOLD (JobHoldMaxRequeue): {HELD}",
        ),
        (Entry("7", "FAILED"), ("started", "failed"), "failed", "FAILED: why"),
        (Entry("7", "NODE_FAIL"), ("started",), "failed", "NODE_FAIL"),
        (Entry("7", "CANCELLED"), ("started", "stopped"), "stopped", "CANCELLED: stopped; resumes when started again"),
        (Entry("7", "COMPLETED"), ("started", "done"), "failed", "COMPLETED: no results"),
        (None, ("started", "failed"), "failed", "why"),
        (None, ("cancelled",), "stopped", "cancelled"),
        (
            Entry("7", "CANCELLED"),
            ("started", "cancelled", "stopped"),
            "stopped",
            "CANCELLED: stopped; resumes when started again",
        ),
        (Entry("7", "CANCELLED"), ("started", "cancelled"), "stopped", "CANCELLED"),
        (Entry("7", "RUNNING", "n1"), ("started", "cancelled"), "running", "RUNNING"),
        (None, ("started",), "lost", "ended without a message"),
        (None, (), "lost", "never started"),
    ],
)
def test_state_from_slurm_and_events(entry: Entry | None, kinds: tuple[str, ...], state: str, message: str) -> None:
    assert state_of(entry, *kinds) == (state, message)


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (("done", "done"), status.ALL_DONE),
        (("done", "running"), status.UNFINISHED),
        (("pending", "missing"), status.UNFINISHED),
        (("running", "failed"), status.FAILED),
        (("running", "lost"), status.FAILED),
        (("done", "missing"), status.NOT_SUBMITTED),
        (("running", "unknown"), status.NO_ANSWER),
    ],
)
def test_exit_codes_are_distinct(states: tuple[status.State, ...], code: int) -> None:
    assert status.exit_code([Row(Task("select"), state) for state in states]) == code


def test_a_held_job_counts_as_failed() -> None:
    waiting = Row(Task("select"), "pending")
    assert status.exit_code([waiting]) == status.UNFINISHED
    assert status.exit_code([replace(waiting, stuck=True)]) == status.FAILED


def test_watching_ends_when_nothing_can_change_by_itself() -> None:
    held = Row(Task("select"), "pending", "PENDING (JobHeldUser)", stuck=True)
    behind = Row(Task("report"), "pending", "PENDING (Dependency)")
    assert status.may_change([behind])
    assert not status.may_change([held, behind])
    assert status.may_change([held, behind, Row(Task("rank"), "running")])


def test_what_is_missing_before_a_stage_is_named(run: RunFolder) -> None:
    recovered(run, "00000-00001")
    markers = Markers(CONFIG, run, CLASSES)
    assert markers.missing_inputs("aggregate") == ["recover: 00002-00003, 00004-00005, 00006-00007, 00008-00009"]
    assert markers.missing_inputs("squeeze") == []


def test_class_count(run: RunFolder, tmp_path: Path) -> None:
    from delt_hpc.errors import UserError

    assert class_count(CONFIG, run) == 10
    assert class_count(load_config("imagenet-1k-resnet18-ipc10"), run) == 1000
    own = CONFIG.model_copy(update={"data": CONFIG.data.model_copy(update={"name": "own", "root": tmp_path / "own"})})
    with pytest.raises(UserError, match="--classes-count"):
        class_count(own, run)
    assert class_count(own, run, 10450) == 10450
    for folder in ("a", "b", "c"):
        (tmp_path / "own" / "train" / folder).mkdir(parents=True)
        (tmp_path / "own" / "train" / folder / "1.png").touch()
    assert class_count(own, run) == 3
    write_text(run.classes, "index,folder,name\n0,a,a\n1,b,b\n")
    assert class_count(own, run) == 2
    with pytest.raises(UserError, match="but the run has"):
        class_count(own, run, 3)


def test_many_tasks_in_the_same_state_are_one_line(run: RunFolder) -> None:
    rows = [Row(Task("recover", ClassRange(i, i)), "failed" if i == 30 else "done", done=3, total=3) for i in range(60)]
    table = show.status(rows, {}, "")
    assert table.row_count == 2
    assert len(show.status_json(rows, {}, "", 4)["tasks"]) == 60


def test_the_last_line_of_progress_in_the_log_of_a_running_task_is_shown(run: RunFolder, submitted: Submitted) -> None:
    lives = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1)
    try:
        here = submitted(Task("squeeze"), job=str(lives.pid))
        records.append_event(LaunchFolder(run), Task("squeeze"), records.new_event("started", here.job, 0))
        assert row(run, Task("squeeze")).message == ""
        lines = ["squeeze: 10/90  (about 80 s left)", "squeeze: 40/90  (about 50 s left)", "a warning"]
        write_text(records.log_of(run, Task("squeeze"), here.job, 0), "x" * 5000 + "\n".join(["", *lines, ""]))
        assert row(run, Task("squeeze")).message == lines[1]
    finally:
        lives.kill()
        lives.wait()
