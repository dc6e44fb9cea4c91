"""What runs in a job: one task of a run, stopped and resumed without loss. Heavy imports are inside."""

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


@dataclass(frozen=True)
class Work:
    """The callable that submitit pickles. Progress lies in the run folder, so it carries parameters only.

    Attributes:
        root: the run folder, absolute.
        classes: of the data set.
        patience: seconds that a stage may take to stop before the job is requeued all the same.
    """

    root: str
    task: Task
    classes: int
    patience: int

    def __call__(self) -> None:
        """Do the task in a job of its own: exit code 2 for a user's error, 3 for missing inputs, 143 if stopped."""
        from submitit.core.job_environment import JobEnvironment  # noqa: PLC0415

        environment = JobEnvironment()
        clear_stale(environment.paths.folder, environment.job_id)
        folder = LaunchFolder(RunFolder(Path(self.root)))
        if shutil.which("scontrol") is None and folder.programs.is_dir():  # inside a container
            os.environ["PATH"] = f"{os.environ['PATH']}{os.pathsep}{folder.programs}"
        job = environment.job_id
        restart = sum(e.event == "started" and e.job == job for e in records.events(folder, self.task))
        requeue = signal.getsignal(signal.SIGUSR2)
        assert callable(requeue)
        with _own_log(records.log_of(RunFolder(Path(self.root)), self.task, job, restart)):
            started = records.event("started", job, restart)
            records.tell(folder, self.task, started)
            print(f"{self.task.name}: job {job}, restart {restart}, on {started.host}", flush=True)
            self._told(folder, job, restart, requeue, slurm=environment.name() == "slurm")

    def checkpoint(self) -> Any:
        """What submitit requeues: the same again."""
        from submitit.core.utils import DelayedSubmission  # noqa: PLC0415

        return DelayedSubmission(self)

    def execute(self) -> None:
        """Do the task here.

        Raises:
            UserError: inputs are missing, or the stage refuses.
            Interrupted: asked to stop by SIGTERM; the state is saved.
        """
        root = Path(self.root)
        config = load_config(self.root)
        missing = Markers(config, RunFolder(root), self.classes).missing_inputs(self.task.stage)
        if missing:
            raise MissingInputsError(
                "what it needs is not finished: " + "; ".join(missing),
                remedy="`delt-hpc status` says what became of it; `delt-hpc submit` submits what is missing",
            )
        from delt_hpc import pipeline  # noqa: PLC0415
        from delt_hpc.run.progress import Reporter  # noqa: PLC0415

        context = pipeline.open_run(config, root, Reporter())
        stop.check()
        # The last of the array writes the ranking, unless its view of a shared disk was too old to know.
        stages: tuple[Stage, ...] = ("rank", "select") if self.task.stage == "select" else (self.task.stage,)
        pipeline.run_stages(context, stages, self.task.classes, self.task.trial)

    def _told(self, folder: LaunchFolder, job: str, restart: int, requeue: Callable[..., Any], *, slurm: bool) -> None:
        """Work, and tell in the records how it ended."""

        def tell(kind: str, message: str = "") -> None:
            records.tell(folder, self.task, records.event(kind, job, restart, message))

        asked: list[int] = []
        try:
            with stop.on_signal(), _user_signal(asked, self.patience, requeue):
                self.execute()
        except stop.Interrupted:
            print("stopped as asked to, state saved", flush=True)
            tell("stopped")
            if asked or (slurm and queue.still_wanted(job)):
                try:
                    requeue(signal.SIGUSR2, None)  # submitit's: calls checkpoint(), requeues and exits
                except Exception as error:
                    tell("failed", str(error))
                    raise
            sys.exit(stop.EXIT_CODE)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            tell("failed", str(error).splitlines()[0])
            sys.exit(MISSING_INPUTS if isinstance(error, MissingInputsError) else USER_ERROR)
        except Exception as error:
            traceback.print_exc()
            tell("failed", f"{type(error).__name__}: {error}"[:500])
            raise
        tell("done")


class MissingInputsError(UserError):
    """A stage before this one is not finished."""


def clear_stale(folder: Path, job: str) -> None:
    """Delete what a writer that was killed has left half-written, on which submitit would refuse to work."""
    for name in (f"{job}_0_result.pkl.save_tmp", f"{job}_submitted.pkl.save_tmp"):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def _user_signal(asked: list[int], patience: int, requeue: Callable[..., Any]) -> Iterator[None]:
    """Inside, USR2 asks the stage to stop with its state saved; one that does not in time is requeued as it is.

    Behind it USR2 means nothing more: what is finished need not be requeued, and should not look as if it had failed.
    """

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        print("time is up or another job wants the node: saving", flush=True)
        signal.raise_signal(signal.SIGTERM)
        signal.alarm(patience)

    def give_up(number: int, frame: FrameType | None) -> None:
        requeue(signal.SIGUSR2, frame)

    signal.signal(signal.SIGUSR2, note)
    before = signal.signal(signal.SIGALRM, give_up)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _own_log(path: Path) -> Iterator[None]:
    """All output of this process and its children goes to `path`; one file a task and restart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        for number, handle in enumerate(kept, start=1):
            os.dup2(handle, number)
            os.close(handle)
