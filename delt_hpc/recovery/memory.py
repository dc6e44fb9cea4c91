"""How many batches a pass may have: from what a pass of one batch is measured to take."""

from collections.abc import Callable, Sequence

import torch

from delt_hpc.config.schema import Recover
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.recovery.batches import Batch
from delt_hpc.recovery.precision import Precision
from delt_hpc.recovery.scheduler import Capacity, PackingPlan
from delt_kernels.teacher.fused import FusedTeacher

MOST_A_ROUND = 8  # batches in a pass; more only make each iteration longer
RESERVE = 0.1  # of the free memory: fragments, workspaces


def segments(
    recover: Recover,
    network: FusedTeacher,
    precision: Precision,
    spec: DatasetSpec,
    every: Sequence[Batch],
    wanted: int,
    device: torch.device,
) -> int:
    """Batches of a pass: as configured, or what fits.

    On a CPU one: packing brings nothing there. Under `deterministic` as many as there are rounds, because that choice
    must not depend on the memory that happens to be free.

    Args:
        every: all batches of the plan.
        wanted: batches there are to do.
    """
    if recover.segments != "auto":
        return recover.segments
    if device.type == "cpu":
        return 1
    if recover.deterministic:
        return recover.rounds
    per_image = bytes_an_image(network, precision, spec, max(len(batch.entries) for batch in every), device)
    held = 3 * 4 * 3 * spec.size**2  # images and two moments in float32

    def needed(count: int) -> float:
        packing = PackingPlan.of(wanted, recover.rounds, count, recover.deterministic)
        capacity = Capacity.of(every, packing)
        # Twice: a shape is run as it is first, while the graphs of smaller ones hold their own memory.
        return 2 * capacity.images * per_image + packing.segments * capacity.slot * held

    return most(needed, (1 - RESERVE) * torch.cuda.mem_get_info(device)[0], min(wanted, MOST_A_ROUND * recover.rounds))


def most(needed: Callable[[int], float], available: float, limit: int) -> int:
    """The largest count up to the limit whose need is there; one where not even that is, and the pass itself tells."""
    return next((count for count in range(limit, 1, -1) if needed(count) <= available), 1)


def bytes_an_image(
    network: FusedTeacher, precision: Precision, spec: DatasetSpec, images: int, device: torch.device
) -> float:
    """GPU memory that one image takes in a pass of so many, forward and backward."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    seen = torch.zeros(images, 3, spec.size, spec.size, dtype=precision.network, device=device)
    seen = seen.contiguous(memory_format=torch.channels_last).requires_grad_()
    logits, distance = network(seen, torch.tensor([0, images], dtype=torch.int32, device=device))
    torch.autograd.grad(logits.sum() + distance.sum(), seen)
    peak = torch.cuda.max_memory_allocated(device)
    del seen, logits, distance
    torch.cuda.empty_cache()
    return (peak - before) / images
