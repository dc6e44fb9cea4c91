"""Compile for a run before its array jobs start, so that each of them starts warm."""

import time
from dataclasses import dataclass
from pathlib import Path

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.schema import Config, Recover
from delt_hpc.context import choose_device
from delt_hpc.data.catalog.specs import SPECS, DatasetSpec, resolve
from delt_hpc.errors import UserError
from delt_hpc.keyed_random import seeded
from delt_hpc.models import registry
from delt_hpc.recovery import compile_cache, images
from delt_hpc.recovery.batches import of_classes, plan
from delt_hpc.recovery.cuda_graph import WARM_UP
from delt_hpc.recovery.engine_setup import build_engine
from delt_hpc.recovery.precision import check
from delt_hpc.recovery.scheduler import ScheduledBatch, run_batches
from delt_hpc.recovery.state import State
from delt_hpc.run.folder import RunFolder, read_json


@dataclass(frozen=True)
class Warmed:
    """
    Attributes:
        folder: the pack.
        was_there: did the process start from an earlier pack?
        first_seconds: of the first iteration, compilation included.
        seconds: of everything.
    """

    folder: Path
    was_there: bool
    first_seconds: float
    seconds: float


def warmup(config: Config, run: RunFolder, classes: ClassRange | None = None) -> Warmed:
    """Go through every shape of the run's recovery once, on random images and weights, and pack what was compiled.

    What is compiled depends on the teacher's architecture, not on its weights: no stage need have run.

    Args:
        classes: the range of a task; the batches of a pass depend on how many a task has. All by default.

    Raises:
        UserError: the image size and the class count are not known yet, or the network does not go with them.
    """
    device, spec = choose_device(config.machine), spec_of(config, run)
    check(config.recover, device)
    registry.check(config.teacher.model, spec.classes, spec.size, where="teacher.model", needs_batch_norm=True)
    folder = compile_cache.folder(run.root, device)
    was_there = compile_cache.unpack(folder)
    began = time.perf_counter()
    recover = short(config.recover)
    with seeded(config.seed, "warmup"):
        teacher = registry.build(config.teacher.model, spec.classes, spec.size)
    teacher = teacher.to(device).eval().requires_grad_(False)
    every = plan(spec.classes, config.select.ipc, recover)
    mine = every if classes is None else of_classes(every, classes)
    setup = build_engine(teacher, recover, spec, 0, every, device=device, batch_count=len(mine))
    # As many as it takes for every place to be filled and emptied.
    scheduler = setup.scheduler(mine[: 2 * setup.packing.segments])

    def load(scheduled: ScheduledBatch) -> State:
        return State.start(images.noise(scheduled.batch, spec, 0, "warmup"))

    run_batches(setup.engine, scheduler, load, lambda scheduled, state: None)
    compile_cache.pack(folder)
    return Warmed(folder, was_there, setup.engine.first_seconds, time.perf_counter() - began)


def spec_of(config: Config, run: RunFolder) -> DatasetSpec:
    """Of the run's data set, or, where it is not set up yet, of the registered one."""
    if run.dataset.exists():
        return DatasetSpec.from_json(read_json(run.dataset)["spec"])
    registered = SPECS.get(config.data.name)
    if registered is None:
        raise UserError(
            "the data set of this run has not been looked at yet",
            where=f"data.name: {config.data.name}",
            remedy="run its first stage, then this",
        )
    # Colours change no shape; they need not be measured.
    plain = config.data.model_copy(update={"mean": None, "std": None})
    classes = config.data.num_classes or len(config.data.classes or ()) or registered.classes
    return resolve(plain, classes, None)


def short(recover: Recover) -> Recover:
    """The same rounds, each just long enough to be recorded and replayed."""
    length = min(WARM_UP + 2, recover.round_length)
    rounds = None if recover.round_iterations is None else length
    return recover.model_copy(update={"iterations": length * recover.rounds, "round_iterations": rounds})
