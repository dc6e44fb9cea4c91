"""The reference engine: the published algorithm in plain PyTorch, one batch at a time. The oracle of faster engines."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from delt_hpc.config.schema import Recover
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.keyed_random import Key
from delt_hpc.recovery.augmentation import draw_view, look
from delt_hpc.recovery.batches import Batch
from delt_hpc.recovery.objective import Objective
from delt_hpc.recovery.schedule import Schedule
from delt_hpc.recovery.state import State

EPSILON = 1e-8  # Adam's


def recover(
    state: State,
    batch: Batch,
    teacher: nn.Module,
    recover_config: Recover,
    spec: DatasetSpec,
    key: tuple[Key, ...],
    after_iteration: Callable[[State, int], None],
) -> None:
    """Optimise the batch's images from state.t to the last iteration, in place.

    Rows enter by their entry's round; a row that has not entered costs nothing and does not change. At every iteration:
    one view for all active rows, the objective, one step of Adam, clamping to the box of valid pixels.

    Args:
        teacher: frozen, evaluation mode, on the images' device.
        key: (seed, stage, batch) of the random draws; the iteration is added.
        after_iteration: called with the state and the number of active rows.
    """
    schedule = Schedule.of(recover_config)
    labels = torch.tensor([entry.class_index for entry in batch.entries], device=state.images.device)
    low, high = pixel_box(spec, state.images)
    with full_float32(), Objective(teacher, recover_config.r_bn, recover_config.first_bn_weight) as objective:
        while state.t < schedule.iterations:
            began, t, now = time.perf_counter(), state.t, schedule.round(state.t)
            active, lr, smallest = batch.active(now), schedule.lr(t), schedule.smallest_crop(t)
            view = draw_view(spec.size, smallest, spec.mirror, recover_config.jitter, *key, t)
            images = state.images[:active].detach().requires_grad_()
            loss = objective(look(images, view), labels[:active])
            (gradient,) = torch.autograd.grad(loss.total, images)
            counts = step_counts(batch, schedule, recover_config.adam_steps, t, active)
            adam(state, gradient, lr, recover_config.betas, counts)
            state.images[:active] = state.images[:active].clamp(low, high)
            state.cross_entropy[:active] = loss.each
            values = (loss.total.item(), loss.cross_entropy.item(), loss.batch_norm.item())
            state.curve.append((t, now, active, lr, smallest, *values))
            state.t += 1
            state.spent(now, time.perf_counter() - began)
            after_iteration(state, active)


def adam(state: State, gradient: Tensor, lr: float, betas: Sequence[float], counts: Tensor) -> None:
    """One step of Adam (Kingma & Ba 2015) on the first rows; counts [active]: the step each row is at, from 1."""
    active = len(gradient)
    first, second = state.first[:active], state.second[:active]
    first.lerp_(gradient, 1 - betas[0])
    second.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    count = counts.to(gradient).view(-1, 1, 1, 1)
    scale = (second / (1 - betas[1] ** count)).sqrt_().add_(EPSILON)
    state.images[:active] -= lr / (1 - betas[0] ** count) * first / scale


def step_counts(batch: Batch, schedule: Schedule, adam_steps: str, t: int, active: int) -> Tensor:
    """Adam's step count of each active row: the batch's (`shared`, as published) or since the row's own entry.

    Under `shared` the first step of an image that enters late is (1 - b1) / sqrt(1 - b2) lr, 1.58 lr for 0.5 and 0.9.
    """
    entered = [
        entry.round * schedule.round_length if adam_steps == "per_entry" else 0 for entry in batch.entries[:active]
    ]
    return torch.tensor([t + 1 - start for start in entered], dtype=torch.float64)


def pixel_box(spec: DatasetSpec, like: Tensor) -> tuple[Tensor, Tensor]:
    """What black and white are after normalisation: -m/s and (1-m)/s, each [3, 1, 1]."""
    mean, std = (
        torch.tensor(values, dtype=like.dtype, device=like.device).view(3, 1, 1) for values in (spec.mean, spec.std)
    )
    return -mean / std, (1 - mean) / std


@contextmanager
def full_float32() -> Iterator[None]:
    """No TF32 in convolutions and products: the oracle computes in what it says."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
