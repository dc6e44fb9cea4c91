"""What runs inside a job: one task of a run, which stops on a signal and resumes. Imports torch only when it works."""

import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.load import load_config
from delt_hpc.config.schema import Config, Stage
from delt_hpc.errors import UserError
from delt_hpc.launch import queue, records
from delt_hpc.launch.markers import Markers
from delt_hpc.launch.plan import Task
from delt_hpc.launch.records import LaunchFolder
from delt_hpc.launch.script import EARLY_SIGNALS
from delt_hpc.run import late, stop
from delt_hpc.run.folder import RunFolder

USER_ERROR, MISSING_INPUTS, MISSING_GPU = 2, 3, 4
_POLL_SECONDS = 2.0
_REQUEUE_SECONDS = 5.0  # between two attempts to requeue while the controller is away

Handler = Callable[[int, FrameType | None], Any]


@dataclass(frozen=True)
class TaskRunner:
    """The callable that submitit pickles. It carries parameters only: progress is kept in the run folder.

    Attributes:
        root: absolute path of the run folder.
        classes: number of classes of the data set.
        gpu: the job requests a GPU, so torch must see one. A text is the GPU's name in CUDA_VISIBLE_DEVICES.
        stop_seconds: time in which a stage must have saved its state after a signal; then the job is requeued anyway.
        retries: times that the job is moved to another node because its node has lost the GPU.
        shapes: of the warm-up: a class range of each length that tasks have.
    """

    root: str
    task: Task
    classes: int
    gpu: bool | str | None
    stop_seconds: int
    retries: int = 0
    shapes: tuple[ClassRange, ...] = ()

    def __call__(self) -> None:
        """Do the task in a job of its own.

        Exit code 2 is a user's error, 3: missing inputs, 4: the node has lost its GPU, 143: stopped, resumes.
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
            patient = _patient(requeue, job)
            self._execute_recorded(folder, job, restart, patient, slurm=environment.name() == "slurm")

    def checkpoint(self) -> Any:
        """What submitit runs after a requeue: this runner again."""
        from submitit.core.utils import DelayedSubmission  # noqa: PLC0415

        return DelayedSubmission(self)

    def execute(self) -> None:
        """Do the task in this process.

        Raises:
            UserError: inputs or a GPU are missing, or the stage refuses to start.
            Interrupted: stopped by SIGTERM; the state is saved.
        """
        root = Path(self.root)
        if isinstance(self.gpu, str):
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpu
        config = load_config(self.root)
        missing = [] if self.task.warm_up else self._missing_inputs(config)
        if missing:
            raise MissingInputsError(
                "inputs are not finished: " + "; ".join(missing),
                remedy="`delt-hpc status` shows why; `delt-hpc submit` submits what is missing",
            )
        from delt_hpc.context import choose_device  # noqa: PLC0415

        if self.gpu and config.machine.device != "cpu" and choose_device(config.machine).type == "cpu":
            raise MissingGpuError(
                f"the job requests a GPU, but torch sees none on {records.this_host()}",
                remedy="exclude the node (--exclude in the profile), or set machine.device: cpu to work without a GPU",
            )
        if self.task.warm_up:
            self._warm_up(config)
            return
        from delt_hpc import pipeline  # noqa: PLC0415
        from delt_hpc.run.progress import Reporter  # noqa: PLC0415

        context = pipeline.open_run(config, root, Reporter())
        repeat_early_signals()
        stop.check()
        # The last rank task writes ranking.csv. On a slow shared file system none of them may have seen all files of
        # the others; then select writes it.
        stages: tuple[Stage, ...] = ("rank", "select") if self.task.stage == "select" else (self.task.stage,)
        pipeline.run_stages(context, stages, self.task.classes, self.task.trial)

    def _warm_up(self, config: Config) -> None:
        from delt_hpc.recovery.warmup import warmup  # noqa: PLC0415

        for classes in self.shapes:
            done = warmup(config, RunFolder(Path(self.root)), classes)
            print(f"compiled for {len(classes)} classes in {done.seconds:.0f} s: {done.folder}", flush=True)
            stop.check()

    def _missing_inputs(self, config: Config) -> list[str]:
        """The inputs that are missing. A node may see results of another one late, so it looks again for a while."""
        end = time.monotonic() + late.SECONDS
        while True:
            missing = Markers(config, RunFolder(Path(self.root)), self.classes).missing_inputs(self.task.stage)
            if not missing or time.monotonic() > end:
                return missing
            stop.check()
            time.sleep(_POLL_SECONDS)

    def _execute_recorded(self, folder: LaunchFolder, job: str, restart: int, requeue: Handler, *, slurm: bool) -> None:
        """Do the task and record how it ended."""

        def record(kind: str, message: str = "") -> None:
            records.append_event(folder, self.task, records.new_event(kind, job, restart, message))

        def leave_node(reason: str) -> NoReturn:
            record("lost_gpu", reason)
            lost = sum(e.event == "lost_gpu" and e.job == job for e in records.events(folder, self.task))
            if slurm and lost <= self.retries:
                _requeue_elsewhere(folder, job, requeue)
            sys.exit(MISSING_GPU)

        try:
            with (
                records.heartbeat(folder, self.task),
                stop.on_signal(),
                _stop_on_user_signal(self.stop_seconds, requeue) as signalled,
            ):
                repeat_early_signals()
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
            if isinstance(error, MissingGpuError):
                leave_node(error.what)
            record("failed", str(error).splitlines()[0])
            sys.exit(MISSING_INPUTS if isinstance(error, MissingInputsError) else USER_ERROR)
        except Exception as error:
            traceback.print_exc()
            if self.gpu and is_gpu_failure(error):
                leave_node(f"the GPU failed: {error}"[:500])
            record("failed", f"{type(error).__name__}: {error}"[:500])
            raise
        record("done")


class MissingInputsError(UserError):
    """An earlier stage is not finished."""


class MissingGpuError(UserError):
    """The node has no usable GPU, although the job requests one."""


def _patient(requeue: Handler, job: str) -> Handler:
    """submitit's `requeue`, which fails while the controller is away, and then tries until the controller answers."""

    def handler(number: int, frame: FrameType | None) -> None:
        try:
            requeue(number, frame)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            print("requeueing failed; trying again", flush=True)
            _requeue(job)
            sys.exit(stop.EXIT_CODE)

    return handler


def _requeue(job: str) -> None:
    """Requeue the job as soon as the controller answers.

    Raises:
        QueueError: Slurm refuses it.
    """
    while True:
        try:
            queue.call("scontrol", "requeue", job)
            return
        except queue.QueueRefusedError as error:
            if not any(text in str(error) for text in queue.TEMPORARY):
                raise
        except queue.QueueError:
            pass
        time.sleep(_REQUEUE_SECONDS)


def is_gpu_failure(error: BaseException) -> bool:
    """Whether CUDA itself failed, e.g. because the GPU is lost or broken. To run out of its memory is another error."""
    text = str(error)
    failed = text.startswith(("CUDA error", "NVML error")) and "out of memory" not in text
    return failed or bool(error.__cause__ and is_gpu_failure(error.__cause__))


def _requeue_elsewhere(folder: LaunchFolder, job: str, requeue: Handler) -> None:
    """Requeue the job and exclude the nodes that have lost their GPU. Slurm accepts that for a pending job only."""
    nodes = records.nodes_without_gpu(folder)
    with suppress(queue.QueueError):
        nodes += queue.excluded(job)
    try:
        requeue(signal.SIGUSR2, None)
    except SystemExit:  # requeued: this process has a few seconds left
        for _ in range(20):  # refused while Slurm still ends the job
            with suppress(queue.QueueError):
                queue.exclude(job, nodes)
                break
            time.sleep(0.5)
        raise


def repeat_early_signals() -> None:
    """Raise the signal that came before this process could handle it, if there was one (see `EARLY_SIGNALS`)."""
    path = Path(os.environ.get(EARLY_SIGNALS, ""))
    if path.is_file() and not stop.requested():
        print("a signal came while Python started", flush=True)
        early = path.read_text(encoding="utf-8").split()
        signal.raise_signal(signal.SIGUSR2 if "USR2" in early else signal.SIGTERM)


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
