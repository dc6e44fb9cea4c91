"""How many batches share a pass, from the measured GPU memory of a pass with one batch."""

from collections.abc import Callable, Sequence

import torch

from delt_hpc.config.schema import Recover
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.recovery.batches import Batch
from delt_hpc.recovery.precision import NumericFormat
from delt_hpc.recovery.scheduler import Capacity, PackingPlan
from delt_kernels.teacher.fused import FusedTeacher

MAX_LANES = 8  # a pass of more batches takes longer but is no more efficient
RESERVE = 0.1  # share of the free memory that is left for fragmentation and library workspaces


def choose_segments(
    recover: Recover,
    network: FusedTeacher,
    numeric_format: NumericFormat,
    spec: DatasetSpec,
    all_batches: Sequence[Batch],
    batch_count: int,
    device: torch.device,
) -> int:
    """The number of batches in a pass: `recover.segments`, or as many as fit.

    On a CPU one: packing gains little there, and the bytes of a batch then depend on this batch alone. With
    `deterministic` one for each round on a GPU, because the number must not depend on the memory that happens to be
    free.

    Args:
        all_batches: those of the whole run.
        batch_count: batches of the task.
    """
    if recover.segments != "auto":
        return recover.segments
    if device.type == "cpu":
        return 1
    if recover.deterministic:
        return recover.rounds
    images = max(len(batch.entries) for batch in all_batches)
    pass_bytes_per_image = measure_bytes_per_image(network, numeric_format, spec, images, device)
    sizes = set(recover.sizes_at(spec.size))
    state_bytes_per_image = sum(3 * 4 * 3 * size**2 for size in sizes)  # the image and two moments, float32, 3 channels

    def bytes_needed(segments: int) -> float:
        packing = PackingPlan.of(batch_count, recover.rounds, segments, recover.deterministic)
        capacity = Capacity.of(all_batches, packing)
        # A new shape runs without a graph first, while the graphs of smaller shapes and other sizes hold their memory.
        return (
            1 + len(sizes)
        ) * capacity.images * pass_bytes_per_image + packing.segments * capacity.slot * state_bytes_per_image

    available = (1 - RESERVE) * torch.cuda.mem_get_info(device)[0]
    return largest_that_fits(bytes_needed, available, min(batch_count, MAX_LANES * recover.rounds))


def largest_that_fits(bytes_needed: Callable[[int], float], available: float, limit: int) -> int:
    """The largest count that fits, at least 1 and at most the limit."""
    return next((count for count in range(limit, 1, -1) if bytes_needed(count) <= available), 1)


def measure_bytes_per_image(
    network: FusedTeacher, numeric_format: NumericFormat, spec: DatasetSpec, images: int, device: torch.device
) -> float:
    """Peak GPU memory of a forward and backward pass over this many images, divided by their number."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    batch = torch.zeros(images, 3, spec.size, spec.size, dtype=numeric_format.network_dtype, device=device)
    batch = batch.contiguous(memory_format=torch.channels_last).requires_grad_()
    logits, distance = network(batch, torch.tensor([0, images], dtype=torch.int32, device=device))
    torch.autograd.grad(logits.sum() + distance.sum(), batch)
    peak = torch.cuda.max_memory_allocated(device)
    del batch, logits, distance
    torch.cuda.empty_cache()
    return (peak - before) / images
