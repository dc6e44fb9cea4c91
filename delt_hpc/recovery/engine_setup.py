"""The one place that assembles the packed engine: network, numeric format, packing plan, capacity, engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from delt_hpc.config.schema import Recover
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.recovery import memory
from delt_hpc.recovery.auto import resolve_auto
from delt_hpc.recovery.batches import Batch
from delt_hpc.recovery.block_engine import BlockEngine
from delt_hpc.recovery.engine import Engine, fuse
from delt_hpc.recovery.precision import NumericFormat
from delt_hpc.recovery.schedule import Schedule
from delt_hpc.recovery.scheduler import BatchScheduler, Capacity, PackingPlan, ScheduledBatch


@dataclass(frozen=True, eq=False)
class EngineSetup:
    """A packed engine and what it was built for.

    Attributes:
        recover: with values in the place of `auto`; see `auto.resolve_auto`.
        all_batches: those of the whole run, from `batches.plan`.
        sizes: image size in each block, pixels.
    """

    engine: BlockEngine
    packing: PackingPlan
    recover: Recover
    all_batches: Sequence[Batch]
    sizes: tuple[int, ...]

    def scheduler(self, batches: Sequence[Batch], iterations_done: Mapping[str, int] | None = None) -> BatchScheduler:
        """A scheduler that runs these batches to the end.

        Args:
            iterations_done: of batches that are resumed, by batch id; 0 for the others.
        """
        done = iterations_done or {}
        # With `deterministic`, a batch's lane must not depend on which other batches are still to do.
        numbered = self.all_batches if self.recover.deterministic else batches
        lanes = {batch.id: i % self.packing.lanes for i, batch in enumerate(numbered)}
        waiting = [ScheduledBatch(batch, lanes[batch.id], done.get(batch.id, 0)) for batch in batches]
        return BatchScheduler(waiting, self.packing, Schedule.of(self.recover), self.sizes)


def build_engine(
    teacher: nn.Module,
    recover: Recover,
    spec: DatasetSpec,
    seed: int,
    all_batches: Sequence[Batch],
    *,
    device: torch.device,
    batch_count: int | None = None,
    packing: PackingPlan | None = None,
    dtype: torch.dtype = torch.float32,
    compile_on_cpu: bool = False,
    max_segments: int | None = None,
) -> EngineSetup:
    """Assemble the packed engine for a task.

    Args:
        teacher: frozen, in evaluation mode, on the device.
        all_batches: those of the whole run; the buffers are large enough for any of them.
        batch_count: how many batches the task has, finished ones included, so that a restarted task runs the same
            shapes. All batches by default.
        packing: instead of the plan that follows from `batch_count`, `recover.segments` and the free GPU memory.
        dtype: of images, Adam's moments, sums and losses: float32, or float64.
        compile_on_cpu: what `recover.compile: auto` stands for on a CPU.
        max_segments: upper limit of what `recover.segments: auto` stands for.
    """
    recover = resolve_auto(recover, device, compile_on_cpu=compile_on_cpu)
    numeric_format = NumericFormat.of(recover, device)
    network = fuse(teacher, recover, numeric_format)
    if packing is None:
        count = len(all_batches) if batch_count is None else batch_count
        segments = memory.choose_segments(recover, network, numeric_format, spec, all_batches, count, device)
        if max_segments is not None:
            segments = min(segments, max_segments)
        packing = PackingPlan.of(count, recover.rounds, segments, recover.deterministic)
    capacity = Capacity.of(all_batches, packing)
    sizes = recover.sizes_at(spec.size)
    engines = {
        size: Engine(
            network, recover, replace(spec, size=size), seed, packing, capacity, numeric_format,
            device=device, dtype=dtype,
        )
        for size in dict.fromkeys(sizes)
    }  # fmt: skip
    return EngineSetup(BlockEngine(engines, recover, spec.size), packing, recover, all_batches, sizes)
