"""What was submitted and what tasks say of themselves: small files in the run folder, below launch/.

launch/jobs/<stamp>-<job>.json     one a submission: profile, executor, job id, its tasks in the array's order
launch/tasks/<stage>-<unit>.jsonl  one line an event: started, done, stopped, failed, cancelled
launch/work/                       submitit's pickles
"""

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.schema import Stage
from delt_hpc.errors import UserError
from delt_hpc.launch.plan import Task
from delt_hpc.run.folder import RunFolder, read_json, write_json
from delt_hpc.training.trial import Trial


class LaunchFolder:
    """Paths of launch/. Holds no state but the root."""

    def __init__(self, run: RunFolder) -> None:
        self.root = run.root.absolute() / "launch"
        self.jobs = self.root / "jobs"
        self.tasks = self.root / "tasks"
        self.work = self.root / "work"
        self.programs = self.root / "bin"
        self.lock = self.root / "lock"


@dataclass(frozen=True)
class Submission:
    """Tasks that went to an executor together.

    Attributes:
        job: Slurm's id, or a process's of this host.
        array: job's elements are the tasks, `<job>_0` the first.
        classes: of the data set, as planned.
    """

    executor: str
    cluster: str
    host: str
    time: str
    job: str
    array: bool
    stage: Stage
    tasks: tuple[Task, ...]
    classes: int

    def id_of(self, position: int) -> str:
        return f"{self.job}_{position}" if self.array else self.job


@dataclass(frozen=True)
class Event:
    """Something that happened to a task, told by the process that worked on it."""

    event: str
    time: str
    job: str
    restart: int
    host: str
    pid: int
    message: str = ""


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_submission(folder: LaunchFolder, entry: Submission) -> None:
    tasks = [_plain(task) for task in entry.tasks]
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    write_json(folder.jobs / f"{stamp}-{entry.job}.json", {**vars(entry), "tasks": tasks})


def submissions(folder: LaunchFolder) -> list[Submission]:
    """All, oldest first."""
    found = []
    for path in sorted(folder.jobs.glob("*.json")):
        content = read_json(path)
        found.append(Submission(**{**content, "tasks": tuple(_task(t) for t in content["tasks"])}))
    return found


def tell(folder: LaunchFolder, task: Task, event: Event) -> None:
    """Append the event to the task's file."""
    folder.tasks.mkdir(parents=True, exist_ok=True)
    with (folder.tasks / f"{task.name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(vars(event)) + "\n")


def events(folder: LaunchFolder, task: Task) -> list[Event]:
    """All of a task, oldest first; half a line of a killed process is passed over."""
    try:
        lines = (folder.tasks / f"{task.name}.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(Event(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return found


def event(kind: str, job: str, restart: int, message: str = "") -> Event:
    """One of this process; in a Slurm job, the host is the node by Slurm's name."""
    slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    host = os.environ.get("SLURMD_NODENAME", platform.node()) if slurm else platform.node()
    return Event(kind, now(), job, restart, host, os.getpid(), message)


def log_of(run: RunFolder, task: Task, job: str, restart: int) -> Path:
    """Where a task writes in that turn of that job."""
    return run.logs / f"{task.name}.{job}.r{restart}.log"


@contextmanager
def exclusive(folder: LaunchFolder) -> Iterator[None]:
    """One submission of a run at a time, on this host and wherever the file system knows locks.

    Raises:
        UserError: another one is under way.
    """
    folder.root.mkdir(parents=True, exist_ok=True)
    with folder.lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("another submission of this run is under way", where=str(folder.root)) from None
        except OSError:
            pass  # no locks on this file system
        yield


def _plain(task: Task) -> dict[str, Any]:
    classes = [task.classes.first, task.classes.last] if task.classes else None
    return {"stage": task.stage, "classes": classes, "trial": vars(task.trial) if task.trial else None}


def _task(content: dict[str, Any]) -> Task:
    trial, classes = content["trial"], content["classes"]
    return Task(content["stage"], ClassRange(*classes) if classes else None, Trial(**trial) if trial else None)
