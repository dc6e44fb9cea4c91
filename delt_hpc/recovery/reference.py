"""The reference engine: the published algorithm in plain PyTorch, one batch at a time. Tests compare others with it."""

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from delt_hpc.config.schema import Recover
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.keyed_random import Key
from delt_hpc.recovery.augmentation import augment, draw_view
from delt_hpc.recovery.batches import Batch
from delt_hpc.recovery.blocks import begin_block
from delt_hpc.recovery.objective import Objective
from delt_hpc.recovery.precision import backend_flags
from delt_hpc.recovery.schedule import Schedule
from delt_hpc.recovery.state import State, not_finite

EPSILON = 1e-8  # in the denominator of Adam


def recover(
    state: State,
    batch: Batch,
    teacher: nn.Module,
    recover_config: Recover,
    spec: DatasetSpec,
    key: tuple[Key, ...],
    after_iteration: Callable[[State, int], None],
    *,
    tf32: bool = False,
    cudnn_benchmark: bool = False,
) -> None:
    """Optimise the batch's images from state.t to the last iteration, in place.

    An image takes part from its entry round on; before, it is neither computed nor changed. Each iteration augments all
    active images in the same way, takes one step of Adam on the objective and clamps to the range of valid pixels.
    Between two blocks, images are resized and merged with their start (`blocks`).
    Convolutions and matrix products are computed in float32, in TF32 only if asked for.

    Args:
        teacher: frozen, in evaluation mode, on the device of the images.
        key: (seed, stage, batch) of the random draws, to which the iteration is appended.
        after_iteration: called with the state and the number of active images.
        cudnn_benchmark: let cuDNN measure which of its algorithms is fastest.

    Raises:
        UserError: a loss, or an image at the end, is NaN or infinite.
    """
    schedule = Schedule.of(recover_config)
    labels = torch.tensor([entry.class_index for entry in batch.entries], device=state.images.device)
    low, high = pixel_box(spec, state.images)
    with (
        backend_flags(tf32=tf32, cudnn_benchmark=cudnn_benchmark),
        Objective(teacher, recover_config.r_bn, recover_config.first_bn_weight) as objective,
    ):
        while state.t < schedule.iterations:
            start, t, round_index = time.perf_counter(), state.t, schedule.round(state.t)
            active, lr, smallest = batch.active(round_index), schedule.lr(t), schedule.smallest_crop(t)
            view = draw_view(state.images.shape[-1], smallest, spec.mirror, recover_config.jitter, *key, t)
            images = state.images[:active].detach().requires_grad_()
            loss = objective(augment(images, view), labels[:active])
            (gradient,) = torch.autograd.grad(loss.total, images)
            counts = step_counts(batch, schedule, recover_config.adam_steps, t, active)
            adam(state, gradient, lr, recover_config.betas, counts)
            state.images[:active] = state.images[:active].clamp(low, high)
            state.cross_entropy[:active] = loss.cross_entropy_per_image
            values = (loss.total.item(), loss.cross_entropy.item(), loss.bn_distance.item())
            if not all(map(math.isfinite, values)):
                raise not_finite("losses", batch.id, t)
            state.curve.append((t, round_index, active, lr, smallest, *values))
            state.t += 1
            if schedule.starts_block(state.t):
                begin_block(state, recover_config, spec.size)
            state.add_seconds(round_index, time.perf_counter() - start)
            after_iteration(state, active)
    state.check_finite(batch.id)


def adam(state: State, gradient: Tensor, lr: float, betas: Sequence[float], counts: Tensor) -> None:
    """One step of Adam (Kingma & Ba 2015) on the active images, which come first.

    Args:
        gradient: [active, 3, S, S].
        counts: [active], the step number of each image, from 1.
    """
    active = len(gradient)
    exp_avg, exp_avg_sq = state.exp_avg[:active], state.exp_avg_sq[:active]
    exp_avg.lerp_(gradient, 1 - betas[0])
    exp_avg_sq.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    count = counts.to(gradient).view(-1, 1, 1, 1)
    denominator = (exp_avg_sq / (1 - betas[1] ** count)).sqrt_().add_(EPSILON)
    state.images[:active] -= lr / (1 - betas[0] ** count) * exp_avg / denominator


def step_counts(batch: Batch, schedule: Schedule, adam_steps: str, t: int, active: int) -> Tensor:
    """Adam's step number of each active image: that of the batch (`shared`, as published) or since the image's entry.

    Where Adam starts anew in each block, the number is counted from the start of the block.

    With `shared`, the first step of an image that enters late is lr (1 - b1) / sqrt(1 - b2), which is 1.58 lr for the
    published betas 0.5 and 0.9.
    """
    block_start = schedule.adam_start(t)
    entered = [
        max(block_start, entry.round * schedule.round_length) if adam_steps == "per_entry" else block_start
        for entry in batch.entries[:active]
    ]
    return torch.tensor([t + 1 - start for start in entered], dtype=torch.float64)


def pixel_box(spec: DatasetSpec, like: Tensor) -> tuple[Tensor, Tensor]:
    """The values of black and white after normalisation: -m/s and (1-m)/s, each [3, 1, 1]."""
    mean, std = (
        torch.tensor(values, dtype=like.dtype, device=like.device).view(3, 1, 1) for values in (spec.mean, spec.std)
    )
    return -mean / std, (1 - mean) / std
