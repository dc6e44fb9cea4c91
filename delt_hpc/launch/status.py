"""The state of every task: from the run's markers first, then the queue, accounting, and the events of the tasks."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Literal

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.schema import Config, Stage
from delt_hpc.launch import plan, queue, records
from delt_hpc.launch.markers import Markers
from delt_hpc.launch.plan import Task
from delt_hpc.launch.process import ProcessIdentity
from delt_hpc.launch.queue import Entry
from delt_hpc.launch.records import Event, LaunchFolder, Submission
from delt_hpc.recovery.batches import block_size
from delt_hpc.run.folder import RunFolder

Ask = Callable[[Sequence[str]], dict[str, Entry]]
State = Literal["done", "running", "pending", "stopped", "failed", "lost", "unknown", "missing"]
LIVE: tuple[State, ...] = ("running", "pending", "unknown")

# Exit codes of `status`, and of `submit --cluster local`, which waits for its tasks.
ALL_DONE, UNFINISHED, FAILED, NOT_SUBMITTED, NO_ANSWER = 0, 3, 4, 5, 7
# Events with which a task ends on request, and what they mean.
_STOPS = {"stopped": "stopped; resumes when started again", "cancelled": "cancelled", "forgotten": "forgotten"}
COMMENT = "delt-hpc:"  # begins the comment of a job; its token follows
# A line that `run.progress.Bar` writes to a log, and where to look for it.
_PROGRESS, _LOG_TAIL = re.compile(r".+: \d+/\d+ .*\(about \d+ s left\)"), 4096
_SBATCH_TAKES = timedelta(minutes=10)  # at most
# A process that cannot be seen from here, and has shown no sign of life for so long, is lost.
LOST_AFTER_SECONDS = 10 * records.HEARTBEAT_SECONDS


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
        restarted: why the task was started again, once for each restart of its job.
        process: that works on a task of `--cluster local`.
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
    restarted: tuple[str, ...] = ()
    submitted: Task | None = None
    process: ProcessIdentity | None = None


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


def read(config: Config, run: RunFolder, classes: int, ask: Ask = queue.known) -> tuple[list[Row], str]:
    """All tasks of the run in pipeline order, and the error of Slurm, empty if it answered.

    Args:
        ask: returns Slurm's entries of jobs.
    """
    folder, markers = LaunchFolder(run), Markers(config, run, classes)
    problem = _complete_intents(folder)
    owned = _owners(config, records.submissions(folder))
    groups = [group for stage in config.stages for group in _groups(config, markers, stage, classes, owned)]
    unfinished = [owner for tasks, owner in groups if owner and not all(markers.done(t) for t in tasks)]
    queued, error = _query_slurm([owner.job for owner in unfinished if owner.submission.executor == "slurm"], ask)
    problem = problem or error
    rows = [_row(run, folder, markers, tasks, owner, queued, problem) for tasks, owner in groups]
    return rows, problem


def exit_code(rows: Sequence[Row], problem: str = "") -> int:
    """0: all done; 3: some run or wait; 4: some failed or lost; 5: some stopped or not submitted; 7: no answer."""
    states = {row.state for row in rows}
    if states <= {"done"}:
        return ALL_DONE
    if problem or "unknown" in states:
        return NO_ANSWER
    if states & {"failed", "lost"} or any(row.stuck for row in rows):
        return FAILED
    return UNFINISHED if states & {"running", "pending"} else NOT_SUBMITTED  # or stopped


def may_change(rows: Sequence[Row]) -> bool:
    """Whether a task runs, or waits for something that may happen by itself."""
    waiting = [row for row in rows if row.state == "pending" and not row.stuck]
    if any(row.stuck for row in rows):
        waiting = [row for row in waiting if "Dependency" not in row.message]
    return bool(waiting) or any(row.state == "running" for row in rows)


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
    if stage == "recover" and plan.WARM_UP in owned and not markers.finished(stage):
        groups.append(([plan.WARM_UP], owned[plan.WARM_UP]))
    for task in plan.whole(config, stage, classes):
        owner = owned.get(task)
        last = groups[-1] if groups else None
        if task.classes and last and last[1] == owner and (owner or markers.done(last[0][0]) == markers.done(task)):
            last[0].append(task)
        else:
            groups.append(([task], owner))
    return groups


def _complete_intents(folder: LaunchFolder) -> str:
    """Find the jobs of interrupted submissions and record their ids. Returns Slurm's error, empty if it answered."""
    intents = records.intents(folder)
    if not intents:
        return ""
    try:
        found = queue.find({COMMENT + intent.token: intent.name for _, intent in intents})
    except queue.QueueError as error:
        return str(error)
    for path, intent in intents:
        if COMMENT + intent.token in found:
            records.set_job(path, intent, found[COMMENT + intent.token])
        elif datetime.now(UTC) - datetime.fromisoformat(intent.time) > _SBATCH_TAKES:
            path.unlink(missing_ok=True)  # it was never submitted
    return ""


def _query_slurm(jobs: Sequence[str], ask: Ask) -> tuple[dict[str, Entry], str]:
    """Slurm's entries of the jobs, and its error, empty if it answered."""
    if not jobs:
        return {}, ""
    try:
        return ask(jobs), ""
    except queue.QueueError as error:
        return {}, str(error)


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
    if owner.submission.executor != "slurm":  # the numbers of processes are used again
        events = [event for event in events if event.time >= owner.submission.time]
    starts = [event for event in events if event.event == "started"]
    entry = queued.get(owner.job)
    state: State
    state, message = ("done", "") if finished else _state(folder, owner, entry, events, problem)
    log = _log(run, owner.task, starts)
    if state == "running":
        message = "; ".join(filter(None, (message, _last_progress(log))))
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
        log,
        bool(entry and not finished and entry.remedy),
        _restart_reasons(events),
        owner.task,
        owner.submission.process,
    )


def _state(
    folder: LaunchFolder, owner: _Owner, entry: Entry | None, events: list[Event], problem: str
) -> tuple[State, str]:
    """State and message of a task whose results are not there."""
    if owner.submission.executor != "slurm":
        return _process_state(
            owner.submission, events, records.heartbeat_age(folder, owner.task, owner.submission.time)
        )
    if entry and entry.live:
        reason = f" ({entry.reason})" if entry.reason and entry.standing == "pending" else ""
        reason += f": {entry.remedy}" if entry.remedy else ""
        return ("pending" if entry.standing == "pending" else "running"), entry.state + reason
    if problem:
        return "unknown", "Slurm does not answer"
    return _ended(entry, events)


def _ended(entry: Entry | None, events: list[Event]) -> tuple[State, str]:
    """State and message of a task of Slurm that has ended without its results."""
    message = _last_message(events)
    if entry and entry.state == "OUT_OF_MEMORY":
        return "failed", f"{entry.state}: raise memory_gib in the profile, `submit`"
    if entry:
        message = message or ("no results" if entry.standing == "completed" else "")
        stopped = entry.state == "CANCELLED" or (_stopped(events) and entry.state != "TIMEOUT")
        text = f"{entry.state}: {message}" if message and message.upper() != entry.state else entry.state
        return "stopped" if stopped else "failed", text
    if not message:
        return "lost", "ended without a message" if events else "never started"
    return "stopped" if _stopped(events) else "failed", message


def _stopped(events: list[Event]) -> bool:
    """Whether the task ended on request."""
    return bool(events) and events[-1].event in _STOPS


def _last_message(events: list[Event]) -> str:
    """Why the task ended without its results, as far as it reported that."""
    if not events:
        return ""
    if events[-1].event in ("failed", "lost_gpu"):
        return events[-1].message
    return _STOPS.get(events[-1].event, "")


def _restart_reasons(events: list[Event]) -> tuple[str, ...]:
    """Why each start but the first was necessary: by the last event before it."""
    texts = {"stopped": "was stopped", "lost_gpu": "had no working GPU", "started": "was killed, or its node failed"}
    found = []
    for before, event in pairwise(events):
        if event.event == "started":
            found.append(f"{texts.get(before.event, before.event)} on {before.host}")
    return tuple(found)


def _process_state(submission: Submission, events: list[Event], age: float) -> tuple[State, str]:
    """State and message of a task of `--cluster local`.

    Args:
        age: seconds since its last heartbeat.
    """
    message = _last_message(events)
    if message and events[-1].event != "cancelled":  # a cancelled process may still be saving its state
        return "stopped" if _stopped(events) else "failed", message
    alive = submission.process.alive() if submission.process else None
    if alive:
        return "running", ""
    if alive is None and age < LOST_AFTER_SECONDS:
        return "unknown", f"a process on {submission.host}; last sign of life {age:.0f} s ago"
    return ("stopped", message) if message else ("lost", "ended without a message")


def _progress(markers: Markers, task: Task, finished: bool) -> tuple[int, int]:
    if task.stage == "recover" and not task.warm_up:
        return markers.images_done(task)
    return markers.classes_done(task) if task.stage == "rank" else (int(finished), 1)


def _seconds(events: list[Event], state: State) -> int | None:
    """Seconds from the last start to the last event, or until now for a running task."""
    starts = [event for event in events if event.event == "started"]
    if not starts:
        return None
    end = datetime.now(UTC) if state == "running" else datetime.fromisoformat(events[-1].time)
    return int((end - datetime.fromisoformat(starts[-1].time)).total_seconds())


def _last_progress(log: Path | None) -> str:
    """The last line of progress in a task's log, e.g. squeeze: 310/1000 (about 40 s left); empty if there is none."""
    if not log or not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL))
        lines = file.read().decode("utf-8", "replace").splitlines()
    found = [line for line in lines if _PROGRESS.fullmatch(line)]
    return found[-1] if found else ""


def _log(run: RunFolder, task: Task, starts: list[Event]) -> Path | None:
    if not starts:
        return None
    return records.log_of(run, task, starts[-1].job, starts[-1].restart)
