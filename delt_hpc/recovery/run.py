"""Recover a task's batches with the configured engine: reading, writing, checkpoints, progress."""

import gc
import time
from collections.abc import Sequence
from concurrent.futures import Future

import torch
from torch import nn

from delt_hpc.context import Context
from delt_hpc.models import teacher
from delt_hpc.recovery import compile_cache, device_tables, reference
from delt_hpc.recovery.auto import estimate_compilation, image_iterations_of
from delt_hpc.recovery.batch_folder import BatchFolder
from delt_hpc.recovery.batches import Batch
from delt_hpc.recovery.engine import OutOfGpuMemoryError
from delt_hpc.recovery.engine_setup import EngineSetup, build_engine
from delt_hpc.recovery.schedule import Schedule
from delt_hpc.recovery.scheduler import ScheduledBatch, run_batches
from delt_hpc.recovery.state import State
from delt_hpc.recovery.tracking import CurveTracker
from delt_hpc.run import stop
from delt_hpc.run.async_files import AsyncFiles
from delt_hpc.run.progress import Bar

READ_AHEAD = 2  # batches for each lane whose images are read before they are needed


def recover_batches(
    context: Context, folders: Sequence[BatchFolder], all_batches: Sequence[Batch], batch_count: int
) -> None:
    """Optimise the images of unfinished batches and write them to their folders.

    Args:
        folders: of the unfinished batches, at least one.
        all_batches: those of the whole run.
        batch_count: batches of the task, finished ones included, so that a restarted task runs the same shapes.
    """
    network = teacher.load(context.run, context.dataset, context.device)
    schedule = Schedule.of(context.config.recover)
    title = f"recover {folders[0].batch.id}" if len(folders) == 1 else f"recover {len(folders)} batches"
    total = sum(image_iterations_of(folder.batch, schedule, schedule.iterations) for folder in folders)
    with AsyncFiles() as files, context.reporter.bar(title, total) as bar, CurveTracker(context) as tracker:
        job = _Job(context, folders, files, bar, tracker)
        if context.config.recover.engine == "reference":
            _run_reference(job, network)
        else:
            _run_packed(job, network, all_batches, batch_count)


def _run_reference(job: "_Job", network: nn.Module) -> None:
    """One batch after the other; those with a checkpoint first."""
    context, config = job.context, job.context.config
    for folder in sorted(job.folders.values(), key=lambda folder: folder.batch.id not in job.checkpoints):
        stop.check()
        state = job.load(folder.batch).to(context.device)

        def after_iteration(state: State, active: int, folder: BatchFolder = folder) -> None:
            job.bar.advance(active, f"loss {state.curve[-1][5]:.3f}")
            job.tracker.log(folder.batch.id, state)
            if job.timer.due() and state.t < config.recover.iterations:
                state.check_finite(folder.batch.id)
                job.save({folder.batch.id: state.to(torch.device("cpu"))})
                stop.check()

        key = device_tables.draw_key(config.seed, folder.batch)
        reference.recover(state, folder.batch, network, config.recover, context.dataset.spec, key, after_iteration)
        job.finish(folder.batch, state, compile_seconds=0.0, segments=1)


def _run_packed(job: "_Job", network: nn.Module, all_batches: Sequence[Batch], batch_count: int) -> None:
    """Several batches in a pass. If the GPU memory does not suffice, with half as many, until it does."""
    context, config, device = job.context, job.context.config.recover, job.context.device
    spec, compile_on_cpu = context.dataset.spec, False
    if config.compile == "auto" and device.type == "cpu":
        estimate = estimate_compilation(network, config, all_batches, spec.size, device)
        compile_on_cpu = estimate.worthwhile
        context.reporter.say(f"recover: {'compiled' if compile_on_cpu else 'not compiled'}; {estimate}")
    if compile_on_cpu or config.compile is True or device.type == "cuda":
        compile_cache.unpack(compile_cache.folder(context.run.root, device))
    max_segments = None
    while True:
        setup = build_engine(
            network, config, spec, context.config.seed, all_batches, device=device, batch_count=batch_count,
            compile_on_cpu=compile_on_cpu, max_segments=max_segments,
        )  # fmt: skip
        if _run_engine(job, setup):
            return
        max_segments = setup.packing.segments // 2
        del setup
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _run_engine(job: "_Job", setup: EngineSetup) -> bool:
    """Run the unfinished batches of the job to their end.

    Returns:
        whether they are finished; if false, the memory did not suffice, and `job.checkpoints` has the states of the
        batches that were in flight.
    """
    engine, compiles = setup.engine, bool(setup.recover.compile)
    batches = [folder.batch for id_, folder in job.folders.items() if id_ not in job.finished]
    scheduler = setup.scheduler(batches, {id_: state.t for id_, state in job.checkpoints.items()})
    states: dict[str, State] = {}
    note = ""

    def load(scheduled: ScheduledBatch) -> State:
        state = states[scheduled.batch.id] = job.load(scheduled.batch)
        job.read_ahead([waiting.batch for waiting in scheduler.waiting[: READ_AHEAD * setup.packing.lanes]])
        return state

    def finish(scheduled: ScheduledBatch, state: State) -> None:
        del states[scheduled.batch.id]
        job.finish(scheduled.batch, state, engine.first_seconds if compiles else 0.0, setup.packing.segments)

    def after_iteration(images: int) -> bool:
        job.bar.advance(images, note)
        return job.timer.due()

    def after_run(in_flight: Sequence[tuple[ScheduledBatch, State]]) -> None:
        nonlocal note
        losses = [state.curve[-1][5] for _, state in in_flight if state.curve]
        note = f"loss {sum(losses) / len(losses):.3f}" if losses else ""
        for scheduled, state in in_flight:
            job.tracker.log(scheduled.batch.id, state)
        if job.timer.due():
            # All snapshots before the first write: one that is not finite raises, and then all checkpoints stay as they
            # were.
            job.save({scheduled.batch.id: engine.snapshot(scheduled, state) for scheduled, state in in_flight})
        stop.check()

    try:
        run_batches(engine, scheduler, load, finish, after_iteration, after_run)
    except OutOfGpuMemoryError as error:
        if not error.restored:
            raise
        for scheduled in scheduler.in_flight:
            job.checkpoints[scheduled.batch.id] = engine.snapshot(scheduled, states[scheduled.batch.id])
        job.context.reporter.say(f"recover: {error.what}; going on with at most {setup.packing.segments // 2}")
        return False
    return True


class _CheckpointTimer:
    """Tells when the next checkpoint is due."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def due(self) -> bool:
        """Whether the interval has passed or the process was asked to stop."""
        return time.monotonic() - self._last >= self._seconds or stop.requested()

    def reset(self) -> None:
        self._last = time.monotonic()


class _Job:
    """What both engines need: the unfinished batches, their files, the progress bar."""

    def __init__(
        self, context: Context, folders: Sequence[BatchFolder], files: AsyncFiles, bar: Bar, tracker: CurveTracker
    ) -> None:
        self.context, self.bar, self.tracker = context, bar, tracker
        self.folders = {folder.batch.id: folder for folder in folders}
        # Loaded before the work starts, because they say how far each batch is.
        self.checkpoints = {folder.batch.id: folder.load() for folder in folders if folder.started}
        self.finished: set[str] = set()
        self.timer = _CheckpointTimer(context.config.recover.checkpoint_seconds)
        schedule = Schedule.of(context.config.recover)
        bar.resume(
            sum(image_iterations_of(self.folders[id_].batch, schedule, s.t) for id_, s in self.checkpoints.items())
        )
        self._files = files
        self._being_read: dict[str, Future[State]] = {}
        self._wait_seconds: dict[str, float] = {}
        self._compilation_recorded = False

    def load(self, batch: Batch) -> State:
        """The state of a batch: its checkpoint, or its initial images."""
        start = time.perf_counter()
        if batch.id in self.checkpoints:
            state = self.checkpoints.pop(batch.id)
        elif batch.id in self._being_read:
            state = self._being_read.pop(batch.id).result()
        else:
            state = self.folders[batch.id].load()
        self._wait_seconds[batch.id] = self._wait_seconds.get(batch.id, 0.0) + time.perf_counter() - start
        self.tracker.start(batch.id, state)
        return state

    def read_ahead(self, batches: Sequence[Batch]) -> None:
        """Start reading the initial images of these batches."""
        for batch in batches:
            if batch.id not in self.checkpoints and batch.id not in self._being_read:
                self._being_read[batch.id] = self._files.read(self.folders[batch.id].load)

    def save(self, states: dict[str, State]) -> None:
        """Write checkpoints in the background, by batch id."""
        for id_, state in states.items():
            self._files.write(self.folders[id_].save, state)
        self.timer.reset()

    def finish(self, batch: Batch, state: State, compile_seconds: float, segments: int) -> None:
        """Write the results of a batch in the background. Compilation is recorded with the first finished batch."""
        self.tracker.finish(batch.id, state)
        self.finished.add(batch.id)
        seconds = 0.0 if self._compilation_recorded else compile_seconds
        self._compilation_recorded = True
        self._files.write(self.folders[batch.id].finish, state, self._wait_seconds.pop(batch.id), segments, seconds)
