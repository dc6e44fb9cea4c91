"""The state of every task: from the run's markers first, then the queue, accounting, and the events of the tasks."""

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.schema import Config, Stage
from delt_hpc.launch import plan, queue, records
from delt_hpc.launch.markers import Markers
from delt_hpc.launch.plan import Task
from delt_hpc.launch.queue import Entry
from delt_hpc.launch.records import Event, LaunchFolder, Submission
from delt_hpc.recovery.batches import block_size
from delt_hpc.run.folder import RunFolder

State = Literal["done", "running", "pending", "failed", "lost", "unknown", "missing"]
LIVE: tuple[State, ...] = ("running", "pending", "unknown")

# Exit codes of `status`, and of `submit --cluster local`, which waits for its tasks.
ALL_DONE, UNFINISHED, FAILED, NOT_SUBMITTED, NO_ANSWER = 0, 3, 4, 5, 7
_LOCAL_PROGRAM = b"submitit.local._local"


@dataclass(frozen=True)
class Row:
    """A task and its state.

    Attributes:
        task: the submitted task, without classes that a later submission has taken over.
        message: Slurm's state and reason, or the task's own message when it failed.
        job: Slurm's job id or a process id; empty if nothing was submitted.
        seconds: run time since the last start.
        done, total: images of recover, classes of rank, for other stages tasks.
        stuck: waits for something that will not happen by itself.
        submitted: the task as it was submitted; its events are recorded under this name.
    """

    task: Task
    state: State
    message: str = ""
    executor: str = ""
    job: str = ""
    node: str = ""
    restarts: int = 0
    seconds: int | None = None
    done: int = 0
    total: int = 1
    log: Path | None = None
    stuck: bool = False
    submitted: Task | None = None


@dataclass(frozen=True)
class _Owner:
    """The last submission of a task, and the task's position in it."""

    submission: Submission
    position: int

    @property
    def task(self) -> Task:
        return self.submission.tasks[self.position]

    @property
    def job(self) -> str:
        return self.submission.id_of(self.position)


def read(config: Config, run: RunFolder, classes: int) -> tuple[list[Row], str]:
    """All tasks of the run in pipeline order, and the error of Slurm, empty if it answered."""
    folder, markers = LaunchFolder(run), Markers(config, run, classes)
    owned = _owners(config, records.submissions(folder))
    groups = [group for stage in config.stages for group in _groups(config, markers, stage, classes, owned)]
    unfinished = [owner for tasks, owner in groups if owner and not all(markers.done(t) for t in tasks)]
    queued, problem = _query_slurm([owner.job for owner in unfinished if owner.submission.executor == "slurm"])
    rows = [_row(run, folder, markers, tasks, owner, queued, problem) for tasks, owner in groups]
    return rows, problem


def exit_code(rows: Sequence[Row], problem: str = "") -> int:
    """0: all done; 3: some run or wait; 4: some failed or lost; 5: some not submitted; 7: Slurm does not answer."""
    states = {row.state for row in rows}
    if states <= {"done"}:
        return ALL_DONE
    if problem or "unknown" in states:
        return NO_ANSWER
    if states & {"failed", "lost"} or any(row.stuck for row in rows):
        return FAILED
    return UNFINISHED if states & {"running", "pending"} else NOT_SUBMITTED


def _owners(config: Config, submissions: Iterable[Submission]) -> dict[Task, _Owner]:
    """The last submission of each of the smallest tasks."""
    found: dict[Task, _Owner] = {}
    block = block_size(config.select.ipc, config.recover)
    for submission in submissions:
        for position, task in enumerate(submission.tasks):
            if not task.classes:
                found[task] = _Owner(submission, position)
                continue
            for start in task.classes.indices[::block]:
                part = ClassRange(start, min(start + block - 1, task.classes.last))
                found[Task(task.stage, part)] = _Owner(submission, position)
    return found


def _groups(
    config: Config, markers: Markers, stage: Stage, classes: int, owned: dict[Task, _Owner]
) -> list[tuple[list[Task], _Owner | None]]:
    """The smallest tasks of a stage; neighbours of the same submission, or in the same state without one, together."""
    groups: list[tuple[list[Task], _Owner | None]] = []
    for task in plan.whole(config, stage, classes):
        owner = owned.get(task)
        last = groups[-1] if groups else None
        if task.classes and last and last[1] == owner and (owner or markers.done(last[0][0]) == markers.done(task)):
            last[0].append(task)
        else:
            groups.append(([task], owner))
    return groups


def _query_slurm(jobs: Sequence[str]) -> tuple[dict[str, Entry], str]:
    """Slurm's entries of the jobs, and its error, empty if it answered."""
    if not jobs:
        return {}, ""
    try:
        queued = queue.queued()
    except queue.QueueError as error:
        return {}, str(error)
    gone = [job for job in jobs if job not in queued]
    return (queue.accounted(gone) if gone else {}) | queued, ""


def _row(
    run: RunFolder,
    folder: LaunchFolder,
    markers: Markers,
    tasks: list[Task],
    owner: _Owner | None,
    queued: dict[str, Entry],
    problem: str,
) -> Row:
    first, last = tasks[0], tasks[-1]
    task = first
    if first.classes and last.classes:
        task = Task(first.stage, ClassRange(first.classes.first, last.classes.last))
    finished = all(markers.done(t) for t in tasks)
    done, total = _progress(markers, task, finished)
    if owner is None:
        return Row(task, "done" if finished else "missing", done=done, total=total)
    events = [event for event in records.events(folder, owner.task) if event.job == owner.job]
    starts = [event for event in events if event.event == "started"]
    entry = queued.get(owner.job)
    state: State
    state, message = ("done", "") if finished else _state(owner, entry, events, problem)
    seconds = entry.seconds if entry and state in ("running", "failed") else None
    if seconds is None:
        seconds = _seconds(events, state)
    return Row(
        task,
        state,
        message,
        owner.submission.executor,
        owner.job,
        (starts[-1].host if starts else "") if not entry or not entry.node else entry.node,
        max(0, len(starts) - 1),
        seconds,
        done,
        total,
        _log(run, owner.task, starts),
        bool(entry and not finished and entry.standing == "pending" and entry.reason in queue.STUCK),
        owner.task,
    )


def _state(owner: _Owner, entry: Entry | None, events: list[Event], problem: str) -> tuple[State, str]:
    """State and message of a task whose results are not there."""
    if owner.submission.executor != "slurm":
        return _process_state(owner.submission, events)
    if entry and entry.live:
        reason = f" ({entry.reason})" if entry.reason and entry.standing == "pending" else ""
        return ("pending" if entry.standing == "pending" else "running"), entry.state + reason
    if problem:
        return "unknown", "Slurm does not answer"
    message = _last_message(events)
    if entry:
        message = message or ("no results" if entry.standing == "completed" else "")
        return "failed", f"{entry.state}: {message}" if message and message.upper() != entry.state else entry.state
    return ("failed", message) if message else ("lost", "ended without a message" if events else "never started")


def _last_message(events: list[Event]) -> str:
    """Why the task ended without its results, as far as it reported that."""
    if not events:
        return ""
    if events[-1].event == "failed":
        return events[-1].message
    return {"stopped": "stopped; resumes when started again", "cancelled": "cancelled"}.get(events[-1].event, "")


def _process_state(submission: Submission, events: list[Event]) -> tuple[State, str]:
    """State and message of a task of `--cluster local`."""
    if submission.host != platform.node():
        return "unknown", f"a process on {submission.host}; run `status` there"
    try:
        alive = _LOCAL_PROGRAM in Path(f"/proc/{submission.job}/cmdline").read_bytes()
    except OSError:
        alive = False
    if alive:
        return "running", ""
    message = _last_message(events)
    return ("failed", message) if message else ("lost", "ended without a message")


def _progress(markers: Markers, task: Task, finished: bool) -> tuple[int, int]:
    if task.stage == "recover":
        return markers.images_done(task)
    return markers.classes_done(task) if task.stage == "rank" else (int(finished), 1)


def _seconds(events: list[Event], state: State) -> int | None:
    """Seconds from the last start to the last event, or until now for a running task."""
    starts = [event for event in events if event.event == "started"]
    if not starts:
        return None
    end = datetime.now(UTC) if state == "running" else datetime.fromisoformat(events[-1].time)
    return int((end - datetime.fromisoformat(starts[-1].time)).total_seconds())


def _log(run: RunFolder, task: Task, starts: list[Event]) -> Path | None:
    if not starts:
        return None
    return records.log_of(run, task, starts[-1].job, starts[-1].restart)
