"""Tasks as processes of this machine: some at a time, one GPU each; or in this very process."""

import os
import platform
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from submitit.core.core import Job as SubmititJob
from submitit.local.debug import DebugExecutor
from submitit.local.local import LocalExecutor

from delt_hpc.config.schema import Stage
from delt_hpc.launch import records
from delt_hpc.launch.markers import Markers
from delt_hpc.launch.plan import Job, Task
from delt_hpc.launch.records import Submission
from delt_hpc.launch.submit import Order
from delt_hpc.launch.work import Work
from delt_hpc.run import stop

MINUTES = 60 * 24 * 365  # submitit's local executor wants a limit
PATIENCE = 60
_POLL_SECONDS = 0.2


def gpus() -> list[int]:
    """Numbers of the GPUs that this process may use; none where it is not told by numbers."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [int(part) for part in visible.split(",")] if all(p.isdigit() for p in visible.split(",")) else []
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return list(range(sum(line.startswith("GPU ") for line in listed.splitlines())))


def run_processes(order: Order, jobs: Sequence[Job], processes: int, say: Callable[[str], None]) -> None:
    """Work the tasks off, `processes` at a time, stage after stage; a stage whose inputs failed is left out.

    A stop (Ctrl-C, SIGTERM) is passed on: tasks save their state, and the same command goes on from there.
    """
    slots: dict[int, tuple[SubmititJob[None], Task] | None] = dict.fromkeys(range(processes))
    devices = gpus()
    waiting = [task for job in jobs for task in job.tasks]
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while waiting or any(slots.values()):
            _collect(slots, say)
            running = {held[1].stage for held in slots.values() if held}
            for slot in [number for number, held in slots.items() if held is None]:
                if not waiting or not _may_start(order, waiting[0], running):
                    break
                task = waiting.pop(0)
                if Markers(order.config, order.run, order.classes).missing_inputs(task.stage):
                    say(f"{task.name}: left out, what it needs has failed")
                    continue
                slots[slot] = (_start(order, task, devices[slot % len(devices)] if devices else None), task)
                running.add(task.stage)
                say(f"{task.name}: started")
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        _stop(slots, say)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def run_inline(order: Order, jobs: Sequence[Job]) -> None:
    """Work the tasks off here, one after the other.

    Raises:
        UserError: of the first task that fails.
        Interrupted: by SIGTERM; the state is saved.
    """
    executor = DebugExecutor(order.folder.work)
    for job in jobs:
        for task in job.tasks:
            work = Work(str(order.root), task, order.classes, PATIENCE)
            _record(order, "inline", str(os.getpid()), task)
            with stop.on_signal():
                failure = executor.submit(work.execute).exception()
            if failure:
                raise failure


def _may_start(order: Order, task: Task, running: set[Stage]) -> bool:
    """Nothing that a task may read is still being written: stages follow one another."""
    stages = order.config.stages
    return not any(stages.index(stage) < stages.index(task.stage) for stage in stages if stage in running)


def _start(order: Order, task: Task, device: int | None) -> SubmititJob[None]:
    executor = LocalExecutor(order.folder.work, max_num_timeout=order.profile.timeouts)
    given = {} if device is None else {"gpus_per_node": 1, "visible_gpus": (device,)}
    executor.update_parameters(timeout_min=MINUTES, stderr_to_stdout=True, **given)
    # Ctrl-C reaches all processes of a terminal. Tasks shall hear of it by SIGTERM, which lets them save their state.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        job: SubmititJob[None] = executor.submit(Work(str(order.root), task, order.classes, PATIENCE))
    finally:
        signal.signal(signal.SIGINT, before)
    _record(order, "local", job.job_id, task)
    return job


def _record(order: Order, executor: str, job: str, task: Task) -> None:
    entry = Submission(
        executor, order.cluster, platform.node(), records.now(), job, False, task.stage, (task,), order.classes
    )
    records.write_submission(order.folder, entry)


def _collect(slots: dict[int, tuple[SubmititJob[None], Task] | None], say: Callable[[str], None]) -> None:
    for slot, held in slots.items():
        if held and held[0].done():
            say(f"{held[1].name}: ended")
            slots[slot] = None


def _stop(slots: dict[int, tuple[SubmititJob[None], Task] | None], say: Callable[[str], None]) -> None:
    """Ask all to stop, and wait until they have saved their state."""
    held = [pair for pair in slots.values() if pair]
    for job, _ in held:
        os.kill(int(job.job_id), signal.SIGTERM)
    for job, task in held:
        while not job.done():
            time.sleep(_POLL_SECONDS)
        say(f"{task.name}: stopped")
