"""What `auto` stands for in the options of recovery, on this device and for this much work."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from delt_hpc.config.schema import Recover
from delt_hpc.recovery.batches import Batch
from delt_hpc.recovery.schedule import Schedule
from delt_hpc.run.hardware import cpu_has_bfloat16

# Measured on two CPU cores with ConvNet-3 at 32 pixels (docs/engine.md). They are stated, not measured in each run,
# so that the decision to compile does not depend on what else the machine is doing.
UNCOMPILED_FLOPS = 1.4e11  # per second, of all passes of an iteration, float32 without compilation
COMPILE_SECONDS_PER_LAYER = 5.0  # for each BatchNorm layer, with what surrounds it
WORTHWHILE = 4.0  # compile if the work takes at least this many times the compilation


@dataclass(frozen=True)
class CompileEstimate:
    """Estimated seconds of a run's recovery without compilation, and of compilation."""

    work_seconds: float
    compile_seconds: float

    @property
    def worthwhile(self) -> bool:
        return self.work_seconds >= WORTHWHILE * self.compile_seconds

    def __str__(self) -> str:
        return (
            f"{self.work_seconds:.0f} s of work uncompiled, {self.compile_seconds:.0f} s to compile (estimated);"
            f" worthwhile from {WORTHWHILE:.0f} times on"
        )


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
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        teacher(torch.zeros(1, 3, size, size, device=device))
    # The backward pass to the images costs as much as the forward pass; weights have no gradients.
    flops_per_image = 2 * counter.get_total_flops() * recover.pixel_share(size)
    layers = sum(isinstance(module, nn.BatchNorm2d) for module in teacher.modules())
    return CompileEstimate(image_iterations * flops_per_image / UNCOMPILED_FLOPS, layers * COMPILE_SECONDS_PER_LAYER)


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
