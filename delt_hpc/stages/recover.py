"""Recover: optimise the images of a class range, a folder of recover/ a batch, resumable inside a batch."""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import islice

import torch
from torch import nn

from delt_hpc.config.class_range import ClassRange
from delt_hpc.context import Context
from delt_hpc.errors import UserError
from delt_hpc.models import teacher
from delt_hpc.recovery import compile_cache, device_tables, reference
from delt_hpc.recovery.async_files import Background
from delt_hpc.recovery.batch_folder import BatchFolder
from delt_hpc.recovery.batches import Batch, of_classes, plan
from delt_hpc.recovery.drive import run_batches
from delt_hpc.recovery.engine_setup import build_engine
from delt_hpc.recovery.precision import check
from delt_hpc.recovery.schedule import Schedule
from delt_hpc.recovery.scheduler import ScheduledBatch
from delt_hpc.recovery.state import State
from delt_hpc.run import stop
from delt_hpc.run.folder import is_done, stage_identity, stamp
from delt_hpc.run.progress import Bar

AHEAD = 2  # batches read ahead of a lane


def recover(context: Context, classes: ClassRange | None = None) -> None:
    """Recover every batch of the range that is not finished yet."""
    run, config = context.run, context.config
    check(config.recover, context.device)  # here, for other stages of a GPU's run may well run without one
    classes = context.class_range(classes)
    every = plan(len(context.dataset.classes), config.select.ipc, config.recover)
    batches = of_classes(every, classes)
    stamp(run.recover, stage_identity(config, "recover", run))
    folders = [folder for batch in batches if not (folder := BatchFolder(context, batch)).done]
    if not folders:
        return
    if config.recover.init == "selected" and not is_done(run.selected):
        raise UserError("no images are selected", where=str(run.selected), remedy="run the stage `select` first")
    network = teacher.load(run, context.dataset, context.device)
    schedule = Schedule.of(config.recover)
    title = f"recover {folders[0].batch.id}" if len(folders) == 1 else f"recover {len(folders)} batches"
    total = sum(_image_iterations(folder.batch, schedule, schedule.iterations) for folder in folders)
    with Background() as background, context.reporter.bar(title, total) as bar:
        work = _Work(context, folders, background, bar)
        if config.recover.engine == "reference":
            _one_by_one(work, network)
        else:
            _packed(work, network, every, len(batches))
    context.reporter.say(f"recover: {len(folders)} batch(es) of classes {classes} finished")


def _image_iterations(batch: Batch, schedule: Schedule, iterations: int) -> int:
    """Of a batch's first iterations."""
    length = schedule.round_length
    return sum(batch.active(now) * min(length, max(0, iterations - now * length)) for now in range(schedule.rounds))


class _Clock:
    """Says when the next checkpoint is due."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def due(self) -> bool:
        """Is it time, or is the work asked to stop?"""
        return time.monotonic() - self._last >= self._seconds or stop.requested()

    def reset(self) -> None:
        self._last = time.monotonic()


def _one_by_one(work: "_Work", network: nn.Module) -> None:
    """By the reference engine."""
    context, config = work.context, work.context.config
    clock = _Clock(config.recover.checkpoint_seconds)
    for folder in sorted(work.folders.values(), key=lambda folder: folder.batch.id not in work.states):
        stop.check()
        state = work.load(folder.batch).on(context.device)

        def after_iteration(state: State, active: int, folder: BatchFolder = folder) -> None:
            work.bar.advance(active, f"loss {state.curve[-1][5]:.3f}")
            if clock.due() and state.t < config.recover.iterations:
                work.background.write(folder.save, state.on(torch.device("cpu")))
                clock.reset()
                stop.check()

        key = device_tables.draw_key(config.seed, folder.batch)
        reference.recover(state, folder.batch, network, config.recover, context.dataset.spec, key, after_iteration)
        work.finish(folder.batch, state, 0.0)


def _packed(work: "_Work", network: nn.Module, every: Sequence[Batch], asked: int) -> None:
    """By the packed engine.

    Args:
        asked: batches of the range, finished ones too: a restart has the shapes of the first start.
    """
    context, config, spec = work.context, work.context.config.recover, work.context.dataset.spec
    if config.compiles_on(context.device.type) or context.device.type == "cuda":
        compile_cache.unpack(compile_cache.folder(context.run.root, context.device))
    setup = build_engine(network, config, spec, context.config.seed, every, device=context.device, batch_count=asked)
    engine, packing = setup.engine, setup.packing
    batches = [folder.batch for folder in work.folders.values()]
    scheduler = setup.scheduler(batches, {id_: state.t for id_, state in work.states.items()})
    clock, note = _Clock(config.checkpoint_seconds), ""

    def load(scheduled: ScheduledBatch) -> State:
        state = work.load(scheduled.batch)
        work.read_ahead([coming.batch for coming in islice(scheduler.due(), AHEAD * packing.width)])
        return state

    def finish(scheduled: ScheduledBatch, state: State) -> None:
        work.finish(scheduled.batch, state, engine.first_seconds if config.compiles_on(context.device.type) else 0.0)

    def after_iteration(images: int) -> bool:
        work.bar.advance(images, note)
        return clock.due()

    def between(travelling: Sequence[tuple[ScheduledBatch, State]]) -> None:
        nonlocal note
        losses = [state.curve[-1][5] for _, state in travelling if state.curve]
        note = f"loss {sum(losses) / len(losses):.3f}" if losses else ""
        if clock.due():
            # All of them before the first is written: where one is broken, the others' checkpoints stay as they were.
            for id_, state in [(p.batch.id, engine.snapshot(p, state)) for p, state in travelling]:
                work.background.write(work.folders[id_].save, state)
            clock.reset()
        stop.check()

    run_batches(engine, scheduler, load, finish, after_iteration, between)


class _Work:
    """What the engines have in common: the batches to do, their files, the progress."""

    def __init__(self, context: Context, folders: Sequence[BatchFolder], background: Background, bar: Bar) -> None:
        self.context, self.background, self.bar = context, background, bar
        self.folders = {folder.batch.id: folder for folder in folders}
        # Batches that were on their way: their checkpoints say how far they are.
        self.states = {folder.batch.id: folder.load() for folder in folders if folder.started}
        schedule = Schedule.of(context.config.recover)
        bar.resume(sum(_image_iterations(self.folders[id_].batch, schedule, s.t) for id_, s in self.states.items()))
        self._ahead: dict[str, Future[State]] = {}
        self._waited: dict[str, float] = {}
        self._compiled = False

    def load(self, batch: Batch) -> State:
        began = time.perf_counter()
        if batch.id in self.states:
            state = self.states.pop(batch.id)
        elif batch.id in self._ahead:
            state = self._ahead.pop(batch.id).result()
        else:
            state = self.folders[batch.id].load()
        self._waited[batch.id] = time.perf_counter() - began
        return state

    def read_ahead(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            if batch.id not in self.states and batch.id not in self._ahead:
                self._ahead[batch.id] = self.background.read(self.folders[batch.id].load)

    def finish(self, batch: Batch, state: State, compiled: float) -> None:
        """Compilation counts once, for the first batch that is finished."""
        seconds = 0.0 if self._compiled else compiled
        self._compiled = True
        self.background.write(self.folders[batch.id].finish, state, self._waited.pop(batch.id), seconds)
