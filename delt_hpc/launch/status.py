"""What became of every task: the run's own markers first, then the queue, then accounting, then what tasks told."""

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

# Exit codes of `status`, and of `submit` where it waits for its tasks.
ALL_DONE, UNFINISHED, FAILED, NOT_SUBMITTED, NO_ANSWER = 0, 3, 4, 5, 7
_LOCAL = {"local": "submitit.local._local", "inline": "delt"}


@dataclass(frozen=True)
class Row:
    """A task as it stands.

    Attributes:
        task: what of the submitted task is still its own: a later submission may have taken some of it over.
        word: Slurm's word and reason, or what the task said when it failed.
        job: Slurm's id, or a process's; empty where nothing was submitted.
        seconds: of the present turn, or of the last one.
        done, asked: images of recover, classes of rank, else tasks.
        stuck: waits for something that does not come by itself.
        submitted: the task as it was submitted, under which its events are told.
    """

    task: Task
    state: State
    word: str = ""
    executor: str = ""
    job: str = ""
    node: str = ""
    restarts: int = 0
    seconds: int | None = None
    done: int = 0
    asked: int = 1
    log: Path | None = None
    stuck: bool = False
    submitted: Task | None = None


@dataclass(frozen=True)
class _Owned:
    """The last submission of a task, and the task as it was submitted."""

    submission: Submission
    position: int

    @property
    def task(self) -> Task:
        return self.submission.tasks[self.position]

    @property
    def job(self) -> str:
        return self.submission.id_of(self.position)


def look(config: Config, run: RunFolder, classes: int) -> tuple[list[Row], str]:
    """All tasks of the run, in the order of the stages; and why Slurm could not be asked, if so."""
    folder, markers = LaunchFolder(run), Markers(config, run, classes)
    owned = _owners(config, records.submissions(folder))
    groups = [group for stage in config.stages for group in _groups(config, markers, stage, classes, owned)]
    open_ = [owner for tasks, owner in groups if owner and not all(markers.done(t) for t in tasks)]
    queued, problem = _ask([owner.job for owner in open_ if owner.submission.executor == "slurm"])
    rows = [_row(run, folder, markers, tasks, owner, queued, problem) for tasks, owner in groups]
    return rows, problem


def exit_code(rows: Sequence[Row], problem: str = "") -> int:
    """0 all done; 3 some run or wait; 4 some failed or are lost; 5 some never submitted; 7 Slurm does not answer."""
    states = {row.state for row in rows}
    if states <= {"done"}:
        return ALL_DONE
    if problem or "unknown" in states:
        return NO_ANSWER
    if states & {"failed", "lost"} or any(row.stuck for row in rows):
        return FAILED
    return UNFINISHED if states & {"running", "pending"} else NOT_SUBMITTED


def _owners(config: Config, submissions: Iterable[Submission]) -> dict[Task, _Owned]:
    """The smallest tasks, each with the last submission of it."""
    found: dict[Task, _Owned] = {}
    block = block_size(config.select.ipc, config.recover)
    for submission in submissions:
        for position, task in enumerate(submission.tasks):
            if not task.classes:
                found[task] = _Owned(submission, position)
                continue
            for start in task.classes.indices[::block]:
                part = ClassRange(start, min(start + block - 1, task.classes.last))
                found[Task(task.stage, part)] = _Owned(submission, position)
    return found


def _groups(
    config: Config, markers: Markers, stage: Stage, classes: int, owned: dict[Task, _Owned]
) -> list[tuple[list[Task], _Owned | None]]:
    """The smallest tasks of a stage, neighbours together that belong together."""
    groups: list[tuple[list[Task], _Owned | None]] = []
    for task in plan.whole(config, stage, classes):
        owner = owned.get(task)
        last = groups[-1] if groups else None
        if task.classes and last and last[1] == owner and (owner or markers.done(last[0][0]) == markers.done(task)):
            last[0].append(task)
        else:
            groups.append(([task], owner))
    return groups


def _ask(jobs: Sequence[str]) -> tuple[dict[str, Entry], str]:
    """What Slurm knows of the jobs; or why it does not say."""
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
    owner: _Owned | None,
    queued: dict[str, Entry],
    problem: str,
) -> Row:
    first, last = tasks[0], tasks[-1]
    task = first
    if first.classes and last.classes:
        task = Task(first.stage, ClassRange(first.classes.first, last.classes.last))
    finished = all(markers.done(t) for t in tasks)
    done, asked = _progress(markers, task, finished)
    if owner is None:
        return Row(task, "done" if finished else "missing", done=done, asked=asked)
    told = [event for event in records.events(folder, owner.task) if event.job == owner.job]
    starts = [event for event in told if event.event == "started"]
    entry = queued.get(owner.job)
    state: State
    state, word = ("done", "") if finished else _state(owner, entry, told, problem)
    clock = entry.seconds if entry and state in ("running", "failed") else None
    seconds = _seconds(told, state) if clock is None else clock
    return Row(
        task,
        state,
        word,
        owner.submission.executor,
        owner.job,
        (starts[-1].host if starts else "") if not entry or not entry.node else entry.node,
        max(0, len(starts) - 1),
        seconds,
        done,
        asked,
        _log(run, owner.task, starts),
        bool(entry and not finished and entry.standing == "pending" and entry.reason in queue.STUCK),
        owner.task,
    )


def _state(owner: _Owned, entry: Entry | None, told: list[Event], problem: str) -> tuple[State, str]:
    """Of a task whose markers are not there."""
    if owner.submission.executor != "slurm":
        return _process(owner.submission, told)
    if entry and entry.live:
        word = entry.state if not entry.reason or entry.standing == "running" else f"{entry.state} ({entry.reason})"
        return ("pending" if entry.standing == "pending" else "running"), word
    if problem:
        return "unknown", "Slurm does not answer"
    said = _last_word(told)
    if entry:
        said = said or ("its results are not there" if entry.standing == "completed" else "")
        return "failed", f"{entry.state}: {said}" if said and said.upper() != entry.state else entry.state
    return ("failed", said) if said else ("lost", "ended without a word" if told else "never started")


def _last_word(told: list[Event]) -> str:
    """What a task said when it ended badly."""
    last = told[-1] if told else None
    said = {"stopped": "stopped, state saved", "cancelled": "cancelled"}
    return "" if last is None else last.message if last.event == "failed" else said.get(last.event, "")


def _process(submission: Submission, told: list[Event]) -> tuple[State, str]:
    """Of a task that a process of some host works on, or waits to work on."""
    if submission.host != platform.node():
        return "unknown", f"a process of {submission.host}, not to be seen from here"
    try:
        alive = _LOCAL[submission.executor].encode() in Path(f"/proc/{submission.job}/cmdline").read_bytes()
    except OSError:
        alive = False
    if alive:
        return "running", ""
    said = _last_word(told)
    return ("failed", said) if said else ("lost", "ended without a word")


def _progress(markers: Markers, task: Task, finished: bool) -> tuple[int, int]:
    if task.stage == "recover":
        return markers.images_done(task)
    return markers.classes_done(task) if task.stage == "rank" else (int(finished), 1)


def _seconds(told: list[Event], state: State) -> int | None:
    """From the last start to the last word, or to now."""
    starts = [event for event in told if event.event == "started"]
    if not starts:
        return None
    end = datetime.now(UTC) if state == "running" else datetime.fromisoformat(told[-1].time)
    return int((end - datetime.fromisoformat(starts[-1].time)).total_seconds())


def _log(run: RunFolder, task: Task, starts: list[Event]) -> Path | None:
    if not starts:
        return None
    return records.log_of(run, task, starts[-1].job, starts[-1].restart)
