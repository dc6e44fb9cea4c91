"""What `auto` stands for in the options of recovery, on this device and for this much work."""

from collections.abc import Sequence

import torch
from torch import nn

from delt_hpc.config.schema import Recover
from delt_hpc.recovery.batches import Batch
from delt_hpc.recovery.schedule import Schedule
from delt_hpc.run.hardware import cpu_has_bfloat16
from delt_hpc.training.compiled import COMPILE_SECONDS_PER_LAYER, CompileEstimate, batch_norm_layers, forward_flops

# Measured on two CPU cores with ConvNet-3 at 32 pixels (docs/engine.md). It is stated, not measured in each run, so
# that the decision to compile does not depend on what else the machine is doing.
UNCOMPILED_FLOPS = 1.4e11  # per second, of all passes of an iteration, float32 without compilation


def estimate_compilation(
    teacher: nn.Module,
    recover: Recover,
    all_batches: Sequence[Batch],
    size: int,
    device: torch.device,
) -> CompileEstimate:
    """A pure function of its arguments, so that all tasks of a run decide alike, before and after a restart.

    Args:
        teacher: on the device.
        all_batches: those of the whole run.
        size: of the images, pixels.
    """
    schedule = Schedule.of(recover)
    image_iterations = sum(image_iterations_of(batch, schedule, schedule.iterations) for batch in all_batches)
    # The backward pass to the images costs as much as the forward pass; weights have no gradients.
    flops_per_image = 2 * forward_flops(teacher, size, device) * recover.pixel_share(size)
    return CompileEstimate(
        image_iterations * flops_per_image / UNCOMPILED_FLOPS, batch_norm_layers(teacher) * COMPILE_SECONDS_PER_LAYER
    )


def image_iterations_of(batch: Batch, schedule: Schedule, iterations: int) -> int:
    """Active images, summed over the first `iterations` of a batch."""
    length = schedule.round_length
    return sum(batch.active(r) * min(length, max(0, iterations - r * length)) for r in range(schedule.rounds))


def resolve_auto(recover: Recover, device: torch.device, *, compile_on_cpu: bool = False) -> Recover:
    """The options with values in the place of `auto`, except `segments`, which depends on the memory, and `graphs`.

    Args:
        compile_on_cpu: what `compile: auto` stands for on a CPU.
    """
    on_gpu = device.type == "cuda"
    values: dict[str, object] = {}
    if recover.precision == "auto":
        values["precision"] = "bfloat16" if on_gpu or cpu_has_bfloat16() else "float32"
    if recover.kernels == "auto":
        values["kernels"] = "triton" if on_gpu else "torch"
    if recover.compile == "auto":
        values["compile"] = on_gpu or compile_on_cpu
    return recover.model_copy(update=values)
