"""Tasks as processes of this machine: several at a time, one GPU each."""

import os
import platform
import signal
import time
from collections.abc import Callable, Sequence

from submitit.core.core import Job as Process
from submitit.local.local import LocalExecutor

from delt_hpc.config.schema import Stage
from delt_hpc.launch import records
from delt_hpc.launch.environment import visible_gpus
from delt_hpc.launch.markers import Markers
from delt_hpc.launch.plan import Job, Task
from delt_hpc.launch.process import ProcessIdentity
from delt_hpc.launch.records import Submission
from delt_hpc.launch.request import Request
from delt_hpc.launch.runner import TaskRunner

MINUTES = 60 * 24 * 365  # submitit's local executor requires a time limit
STOP_SECONDS = 60
_POLL_SECONDS = 0.2
_REPEAT_SECONDS = 1.0  # between two signals to a task that does not stop

Slots = dict[int, tuple["Process[None]", Task] | None]


def run_processes(request: Request, jobs: Sequence[Job], processes: int, say: Callable[[str], None]) -> None:
    """Run the tasks, at most `processes` at a time, one stage after another. Tasks whose inputs failed are skipped.

    Ctrl-C and SIGTERM are passed on to the tasks, which save their state; the same command resumes.
    """
    slots: Slots = dict.fromkeys(range(processes))
    devices = visible_gpus()
    waiting = [task for job in jobs for task in job.tasks]
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while waiting or any(slots.values()):
            _free_ended(slots, say)
            running = {held[1].stage for held in slots.values() if held}
            for slot in [number for number, held in slots.items() if held is None]:
                if not waiting or not _may_start(request, waiting[0], running):
                    break
                task = waiting.pop(0)
                if Markers(request.config, request.run, request.classes).missing_inputs(task.stage):
                    say(f"{task.name}: skipped, its inputs failed")
                    continue
                slots[slot] = (_start(request, task, devices[slot % len(devices)] if devices else None), task)
                running.add(task.stage)
                say(f"{task.name}: started")
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        _stop(slots, say)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _may_start(request: Request, task: Task, running: set[Stage]) -> bool:
    """A task starts when no earlier stage runs: it may read all results of earlier stages."""
    stages = request.config.stages
    return not any(stages.index(stage) < stages.index(task.stage) for stage in stages if stage in running)


def _start(request: Request, task: Task, device: str | None) -> "Process[None]":
    executor = LocalExecutor(request.folder.work, max_num_timeout=request.profile.timeouts)
    executor.update_parameters(timeout_min=MINUTES, stderr_to_stdout=True)
    # Ctrl-C on a terminal reaches all processes. Tasks ignore it: they get SIGTERM, on which they save their state.
    runner = TaskRunner(str(request.root), task, request.classes, device, STOP_SECONDS)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process: Process[None] = executor.submit(runner)
    finally:
        signal.signal(signal.SIGINT, before)
    submission = Submission(
        "local",
        request.cluster,
        platform.node(),
        records.now(),
        process.job_id,
        False,
        task.stage,
        (task,),
        request.classes,
        ProcessIdentity.of(int(process.job_id)),
    )
    records.write_submission(request.folder, submission)
    return process


def _free_ended(slots: Slots, say: Callable[[str], None]) -> None:
    for slot, held in slots.items():
        if held and held[0].done():
            say(f"{held[1].name}: ended")
            slots[slot] = None


def _stop(slots: Slots, say: Callable[[str], None]) -> None:
    """Ask all tasks to stop, and wait until they have saved their state."""
    live = [held for held in slots.values() if held]
    while live:
        for process, _ in live:  # repeated: a task that is just starting may miss the first signal
            os.kill(int(process.job_id), signal.SIGTERM)
        time.sleep(_REPEAT_SECONDS)
        for process, task in [held for held in live if held[0].done()]:
            say(f"{task.name}: stopped")
            live.remove((process, task))
