"""What runs inside a job: one task of a run, which stops on a signal and resumes. Imports torch only when it works."""

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from delt_hpc.config.load import load_config
from delt_hpc.config.schema import Stage
from delt_hpc.errors import UserError
from delt_hpc.launch import queue, records
from delt_hpc.launch.markers import Markers
from delt_hpc.launch.plan import Task
from delt_hpc.launch.records import LaunchFolder
from delt_hpc.run import stop
from delt_hpc.run.folder import RunFolder

USER_ERROR, MISSING_INPUTS = 2, 3

Handler = Callable[[int, FrameType | None], Any]


@dataclass(frozen=True)
class TaskRunner:
    """The callable that submitit pickles. It carries parameters only: progress is kept in the run folder.

    Attributes:
        root: absolute path of the run folder.
        classes: number of classes of the data set.
        stop_seconds: time in which a stage must have saved its state after a signal; then the job is requeued anyway.
    """

    root: str
    task: Task
    classes: int
    stop_seconds: int

    def __call__(self) -> None:
        """Do the task in a job of its own.

        Exit code 2 is a user's error, 3 means missing inputs, 143 means stopped with the state saved.
        """
        from submitit.core.job_environment import JobEnvironment  # noqa: PLC0415

        environment = JobEnvironment()
        job, run = environment.job_id, RunFolder(Path(self.root))
        clear_stale(environment.paths.folder, job)
        folder = LaunchFolder(run)
        if shutil.which("scontrol") is None and folder.programs.is_dir():  # inside a container
            os.environ["PATH"] = f"{os.environ['PATH']}{os.pathsep}{folder.programs}"
        restart = sum(e.event == "started" and e.job == job for e in records.events(folder, self.task))
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's handler: calls checkpoint(), requeues the job, exits
        assert callable(requeue)
        with _output_to(records.log_of(run, self.task, job, restart)):
            started = records.new_event("started", job, restart)
            records.append_event(folder, self.task, started)
            print(f"{self.task.name}: job {job}, restart {restart}, on {started.host}", flush=True)
            self._execute_recorded(folder, job, restart, requeue, slurm=environment.name() == "slurm")

    def checkpoint(self) -> Any:
        """What submitit runs after a requeue: this runner again."""
        from submitit.core.utils import DelayedSubmission  # noqa: PLC0415

        return DelayedSubmission(self)

    def execute(self) -> None:
        """Do the task in this process.

        Raises:
            UserError: inputs are missing, or the stage refuses to start.
            Interrupted: stopped by SIGTERM; the state is saved.
        """
        root = Path(self.root)
        config = load_config(self.root)
        missing = Markers(config, RunFolder(root), self.classes).missing_inputs(self.task.stage)
        if missing:
            raise MissingInputsError(
                "inputs are not finished: " + "; ".join(missing),
                remedy="`delt-hpc status` shows why; `delt-hpc submit` submits what is missing",
            )
        from delt_hpc import pipeline  # noqa: PLC0415
        from delt_hpc.run.progress import Reporter  # noqa: PLC0415

        context = pipeline.open_run(config, root, Reporter())
        stop.check()
        # The last rank task writes ranking.csv. On a slow shared file system none of them may have seen all files of
        # the others; then select writes it.
        stages: tuple[Stage, ...] = ("rank", "select") if self.task.stage == "select" else (self.task.stage,)
        pipeline.run_stages(context, stages, self.task.classes, self.task.trial)

    def _execute_recorded(self, folder: LaunchFolder, job: str, restart: int, requeue: Handler, *, slurm: bool) -> None:
        """Do the task and record how it ended."""

        def record(kind: str, message: str = "") -> None:
            records.append_event(folder, self.task, records.new_event(kind, job, restart, message))

        try:
            with stop.on_signal(), _stop_on_user_signal(self.stop_seconds, requeue) as signalled:
                self.execute()
        except stop.Interrupted:
            print("stopped on request; started again, the task resumes", flush=True)
            record("stopped")
            if signalled() or (slurm and queue.still_wanted(job)):
                try:
                    requeue(signal.SIGUSR2, None)
                except Exception as error:
                    record("failed", str(error))
                    raise
            sys.exit(stop.EXIT_CODE)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            record("failed", str(error).splitlines()[0])
            sys.exit(MISSING_INPUTS if isinstance(error, MissingInputsError) else USER_ERROR)
        except Exception as error:
            traceback.print_exc()
            record("failed", f"{type(error).__name__}: {error}"[:500])
            raise
        record("done")


class MissingInputsError(UserError):
    """An earlier stage is not finished."""


def clear_stale(folder: Path, job: str) -> None:
    """Delete half-written files of a killed process; submitit would fail on them."""
    for name in (f"{job}_0_result.pkl.save_tmp", f"{job}_submitted.pkl.save_tmp"):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def _stop_on_user_signal(seconds: int, requeue: Handler) -> Iterator[Callable[[], bool]]:
    """Inside, SIGUSR2 asks the stage to save its state and stop; after `seconds` the job is requeued without that.

    Afterwards SIGUSR2 is ignored: a finished task must not be requeued, nor look as if it had failed.

    Yields:
        A function that says whether the signal has come.
    """
    received: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(number)
        print("time limit is near or the job is preempted: saving", flush=True)
        signal.raise_signal(signal.SIGTERM)
        signal.alarm(seconds)

    def on_alarm(number: int, frame: FrameType | None) -> None:
        requeue(signal.SIGUSR2, frame)

    signal.signal(signal.SIGUSR2, on_signal)
    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Inside, all output of this process and its children goes to the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.dup(1), os.dup(2)
    with path.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        for number, copy in enumerate(before, start=1):
            os.dup2(copy, number)
            os.close(copy)
