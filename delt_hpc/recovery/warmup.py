"""Compile the code of a run's recovery before its array jobs start, so that they need not."""

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
from delt_hpc.recovery import blocks, compile_cache, images
from delt_hpc.recovery.auto import estimate_compilation
from delt_hpc.recovery.batches import of_classes, plan
from delt_hpc.recovery.cuda_graph import WARM_UP
from delt_hpc.recovery.engine_setup import build_engine
from delt_hpc.recovery.precision import check_device
from delt_hpc.recovery.scheduler import ScheduledBatch, run_batches
from delt_hpc.recovery.state import State
from delt_hpc.run.folder import RunFolder, read_json


@dataclass(frozen=True)
class WarmupResult:
    """
    Attributes:
        folder: of the pack.
        from_pack: whether this process started from an earlier pack.
        first_seconds: duration of the first iteration, compilation included.
        seconds: duration of everything.
    """

    folder: Path
    from_pack: bool
    first_seconds: float
    seconds: float


def warmup(config: Config, run: RunFolder, classes: ClassRange | None = None) -> WarmupResult:
    """Run every shape of the run's recovery once, on random images and weights, and pack the compiled code.

    The compiled code depends on the teacher's architecture, not on its weights, so no stage must have run before.

    Args:
        classes: the range of one task; the shapes depend on how many batches a task has. All classes by default.

    Raises:
        UserError: image size or class count are not known yet, or the network does not support them; or the run has no
            iterations.
    """
    if not config.recover.iterations:
        raise UserError("there is nothing to compile", where="recover.iterations: 0")
    device, spec = choose_device(config.machine), spec_of(config, run)
    check_device(config.recover, device)
    registry.check(config.teacher.model, spec.classes, spec.size, where="teacher.model", needs_batch_norm=True)
    folder = compile_cache.folder(run.root, device)
    from_pack = compile_cache.unpack(folder)
    start = time.perf_counter()
    recover = shortened(config.recover)
    with seeded(config.seed, "warmup"):
        teacher = registry.build(config.teacher.model, spec.classes, spec.size)
    teacher = teacher.to(device).eval().requires_grad_(False)
    all_batches = plan(spec.classes, config.select.ipc, recover)
    batches = all_batches if classes is None else of_classes(all_batches, classes)
    estimate = estimate_compilation(teacher, config.recover, all_batches, spec.size, device)
    setup = build_engine(
        teacher, recover, spec, 0, all_batches, device=device, batch_count=len(batches),
        compile_on_cpu=estimate.worthwhile,
    )  # fmt: skip
    # Enough batches for the pipeline to fill and drain, which has all shapes.
    scheduler = setup.scheduler(batches[: 2 * setup.packing.segments])

    def load(scheduled: ScheduledBatch) -> State:
        return blocks.start(images.noise(scheduled.batch, spec, 0, "warmup"), recover)

    run_batches(setup.engine, scheduler, load, lambda scheduled, state: None)
    compile_cache.pack(folder)
    return WarmupResult(folder, from_pack, setup.engine.first_seconds, time.perf_counter() - start)


def spec_of(config: Config, run: RunFolder) -> DatasetSpec:
    """The specification of the run's data set; of the registered data set if no stage of the run has started yet."""
    if run.dataset.exists():
        return DatasetSpec.from_json(read_json(run.dataset)["spec"])
    registered = SPECS.get(config.data.name)
    if registered is None:
        raise UserError(
            "the image size and class count of this data set are not known yet",
            where=f"data.name: {config.data.name}",
            remedy="run the first stage, then this command again",
        )
    # Mean and std change no shape, so they need not be measured.
    data = config.data.model_copy(update={"mean": None, "std": None})
    classes = config.data.num_classes or len(config.data.classes or ()) or registered.classes
    return resolve(data, classes, None)


def shortened(recover: Recover) -> Recover:
    """The same number of rounds and blocks, each just long enough for its CUDA graph to be recorded and replayed."""
    parts = max(recover.rounds, recover.blocks)  # one of them is 1
    length = min(WARM_UP + 2, recover.iterations // parts)
    round_length = None if recover.round_iterations is None else length * parts // recover.rounds
    return recover.model_copy(update={"iterations": length * parts, "round_iterations": round_length})
