"""What was submitted, and what tasks have reported: small files in the run folder, below launch/.

launch/jobs/<time>-<job>.json      one per submission: executor, profile, job id, and its tasks in the array's order
launch/tasks/<stage>-<unit>.jsonl  one line per event: started, done, stopped, failed, lost_gpu, cancelled,
                                   forgotten; its time is that of the last heartbeat of the task's process
launch/work/                       submitit's pickles
"""

import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.schema import Stage
from delt_hpc.errors import UserError
from delt_hpc.launch.plan import Task
from delt_hpc.launch.process import ProcessIdentity
from delt_hpc.run.folder import RunFolder, read_json, write_json
from delt_hpc.training.trial import Trial

HEARTBEAT_SECONDS = 60.0


class LaunchFolder:
    """Paths below launch/."""

    def __init__(self, run: RunFolder) -> None:
        self.root = run.root.absolute() / "launch"
        self.jobs = self.root / "jobs"
        self.tasks = self.root / "tasks"
        self.work = self.root / "work"
        self.programs = self.root / "bin"
        self.lock = self.root / "lock"


@dataclass(frozen=True)
class Submission:
    """Tasks that were started together: a Slurm job, a job array, or a process of this machine.

    Attributes:
        executor: `slurm` or `local`.
        cluster: the profile, as the user named it.
        host: where `submit` ran.
        job: Slurm's job id, or a process id on `host`; empty while sbatch has not answered.
        array: the tasks are elements of a job array; the first is `<job>_0`.
        classes: number of classes of the data set, as known at submission.
        process: the process of a local submission.
        name, token: of a Slurm job: its name, and what its comment ends with.
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
    process: ProcessIdentity | None = None
    name: str = ""
    token: str = ""

    def id_of(self, position: int) -> str:
        """The job id of the task at that position."""
        return f"{self.job}_{position}" if self.array else self.job


@dataclass(frozen=True)
class Event:
    """Something that happened to a task, as reported by the process that worked on it."""

    event: str
    time: str
    job: str
    restart: int
    host: str
    pid: int
    message: str = ""


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_submission(folder: LaunchFolder, submission: Submission) -> Path:
    """Add the submission to the record; returns its file."""
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    path = folder.jobs / f"{moment}-{submission.token or submission.job}.json"
    _write(path, submission)
    return path


def set_job(path: Path, submission: Submission, job: str) -> None:
    """Add the id that Slurm gave to the job to the submission's file."""
    _write(path, replace(submission, job=job))


def _write(path: Path, submission: Submission) -> None:
    tasks = [_task_to_json(task) for task in submission.tasks]
    process = vars(submission.process) if submission.process else None
    write_json(path, {**vars(submission), "tasks": tasks, "process": process})


def submissions(folder: LaunchFolder) -> list[Submission]:
    """All submissions of the run, oldest first."""
    return [submission for _, submission in _read_all(folder) if submission.job]


def intents(folder: LaunchFolder) -> list[tuple[Path, Submission]]:
    """Submissions that were interrupted before the job's id was recorded, and their files."""
    return [(path, submission) for path, submission in _read_all(folder) if not submission.job]


def _read_all(folder: LaunchFolder) -> Iterator[tuple[Path, Submission]]:
    for path in sorted(folder.jobs.glob("*.json")):
        content = read_json(path)
        try:
            tasks = tuple(_task_from_json(task) for task in content["tasks"])
            process = ProcessIdentity(**content["process"]) if content.get("process") else None
            yield path, Submission(**{**content, "tasks": tasks, "process": process})
        except (KeyError, TypeError) as error:
            raise UserError(
                f"is not a record of this version: {error}",
                where=str(path),
                remedy="use the version that submitted, or delete the record once its job has ended",
            ) from None


def append_event(folder: LaunchFolder, task: Task, event: Event) -> None:
    folder.tasks.mkdir(parents=True, exist_ok=True)
    with (folder.tasks / f"{task.name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(vars(event)) + "\n")


def events(folder: LaunchFolder, task: Task) -> list[Event]:
    """All events of a task, oldest first. Incomplete lines of killed processes are skipped."""
    return _read_events(folder.tasks / f"{task.name}.jsonl")


def _read_events(path: Path) -> list[Event]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(Event(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return found


@contextmanager
def heartbeat(folder: LaunchFolder, task: Task) -> Iterator[None]:
    """Inside, show every HEARTBEAT_SECONDS that this process is alive, by the time of the file of the task's events."""
    ended = threading.Event()
    path = folder.tasks / f"{task.name}.jsonl"

    def beat() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def heartbeat_age(folder: LaunchFolder, task: Task, submitted: str) -> float:
    """Seconds since the task's process last showed that it was alive, or else since it was submitted."""
    last = datetime.fromisoformat(submitted).timestamp()
    with suppress(FileNotFoundError):
        last = max(last, (folder.tasks / f"{task.name}.jsonl").stat().st_mtime)
    return max(0.0, time.time() - last)


def nodes_without_gpu(folder: LaunchFolder) -> list[str]:
    """The nodes on which a task of this run saw no GPU in the last day."""
    since = (datetime.now(UTC) - timedelta(days=1)).isoformat(timespec="seconds")
    found = [event for path in folder.tasks.glob("*.jsonl") for event in _read_events(path)]
    return sorted({event.host for event in found if event.event == "lost_gpu" and event.time >= since})


def this_host() -> str:
    """The name of this machine: in a Slurm job Slurm's name of the node."""
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        return os.environ.get("SLURMD_NODENAME", platform.node())
    return platform.node()


def new_event(kind: str, job: str, restart: int, message: str = "") -> Event:
    """An event of this process, now."""
    return Event(kind, now(), job, restart, this_host(), os.getpid(), message)


def log_of(run: RunFolder, task: Task, job: str, restart: int) -> Path:
    """The log file of a task: a new one for each job and restart."""
    return run.logs / f"{task.name}.{job}.r{restart}.log"


@contextmanager
def exclusive(folder: LaunchFolder) -> Iterator[None]:
    """Hold the run's submission lock, on file systems that support locks.

    Raises:
        UserError: another submission holds it.
    """
    folder.root.mkdir(parents=True, exist_ok=True)
    with folder.lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "another submission of this run is in progress", where=str(folder.root), remedy="wait until it ends"
            ) from None
        except OSError:
            pass  # this file system does not support locks
        yield


def _task_to_json(task: Task) -> dict[str, Any]:
    classes = [task.classes.first, task.classes.last] if task.classes else None
    trial = vars(task.trial) if task.trial else None
    return {"stage": task.stage, "classes": classes, "trial": trial, "warm_up": task.warm_up}


def _task_from_json(content: dict[str, Any]) -> Task:
    trial, classes = content["trial"], content["classes"]
    return Task(
        content["stage"],
        ClassRange(*classes) if classes else None,
        Trial(**trial) if trial else None,
        content.get("warm_up", False),
    )
