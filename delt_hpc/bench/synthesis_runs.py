"""Recovery held at one place of its schedule, so that its iterations can be repeated, timed and looked into."""

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from delt_hpc.bench.synthesis_cases import SEED, Case
from delt_hpc.config.schema import Recover
from delt_hpc.recovery import reference
from delt_hpc.recovery.augmentation import augment, draw_view
from delt_hpc.recovery.cuda_graph import MAX_QUEUED_ITERATIONS
from delt_hpc.recovery.device_tables import draw_key
from delt_hpc.recovery.engine_setup import build_engine
from delt_hpc.recovery.objective import Objective
from delt_hpc.recovery.precision import NumericFormat, backend_flags
from delt_hpc.recovery.schedule import Schedule
from delt_hpc.recovery.scheduler import PackingPlan
from delt_hpc.recovery.state import State
from delt_kernels.teacher.frozen import frozen_copy


class Outcome(NamedTuple):
    """Of the first iteration of a batch: its loss, and the gradient of its active images [B, 3, S, S] on the CPU."""

    loss: float
    gradient: Tensor


class Run(Protocol):
    """Recovery whose batches stay where they are: iterations move the images, not the schedule."""

    def enter(self, rounds: Sequence[int]) -> int:
        """Take the batches of these rounds, each at the beginning of its own; the images of a pass."""

    def iterate(self, iterations: int) -> float | None:
        """At most a round's length of them; they are done when this returns.

        Returns:
            seconds in which the host launches an iteration; None where it waits for every iteration anyway.
        """

    def outcome(self, round_index: int) -> Outcome:
        """Of a batch that is in, after the first iteration."""


class Published:
    """One batch at a time, the loss by hooks: the reference engine's iteration in any precision, compiled or not.

    It is given cuDNN's search for the fastest algorithms and, where the precision says so, TF32; the reference engine
    itself has neither.

    Args:
        dtype: of images and moments.
    """

    def __init__(
        self,
        case: Case,
        numeric_format: NumericFormat,
        device: torch.device,
        *,
        compiled: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._case, self._format, self._device, self._dtype = case, numeric_format, device, dtype
        self._recover = case.recipe.recover()
        self._schedule = Schedule.of(self._recover)
        network = _InType(case.teacher, numeric_format.network_dtype or dtype)
        objective = Objective(network, self._recover.r_bn, self._recover.first_bn_weight)
        self._objective = torch.compile(objective, fullgraph=True) if compiled else objective

    def enter(self, rounds: Sequence[int]) -> int:
        (self._round,) = rounds
        self._batch = self._case.batches[self._round]
        self._state = State.start(self._case.images(self._round).to(self._device, self._dtype))
        self._labels = torch.tensor([entry.class_index for entry in self._batch.entries], device=self._device)
        return self._batch.active(self._round)

    def iterate(self, iterations: int) -> None:
        with backend_flags(tf32=self._format.tf32):
            for i in range(iterations):
                self._iteration(self._round * self._schedule.round_length + i)

    def outcome(self, round_index: int) -> Outcome:
        assert round_index == self._round
        return _outcome(self._state, self._batch.active(round_index), self._recover)

    def _iteration(self, t: int) -> None:
        """As in `reference.recover`."""
        recover, spec, state, batch = self._recover, self._case.spec, self._state, self._batch
        active, smallest = batch.active(self._round), self._schedule.smallest_crop(t)
        view = draw_view(spec.size, smallest, spec.mirror, recover.jitter, *draw_key(SEED, batch), t)
        images = state.images[:active].detach().requires_grad_()
        loss = self._objective(augment(images, view), self._labels[:active])
        (gradient,) = torch.autograd.grad(loss.total * self._format.loss_scale, images)
        counts = reference.step_counts(batch, self._schedule, recover.adam_steps, t, active)
        low, high = reference.pixel_box(spec, state.images)
        step = gradient / self._format.loss_scale
        reference.adam(state, step, self._schedule.lr(t), recover.betas, counts)
        state.images[:active] = state.images[:active].clamp(low, high)
        state.cross_entropy[:active] = loss.cross_entropy_per_image
        values = (loss.total.item(), loss.cross_entropy.item(), loss.bn_distance.item())
        state.curve.append((t, self._round, active, self._schedule.lr(t), smallest, *values))


class Packed:
    """The packed engine.

    Args:
        recover: precision, kernels and compilation.
        together: all rounds in one pass; else one batch at a time.
    """

    def __init__(self, case: Case, device: torch.device, *, recover: Recover, together: bool) -> None:
        self._case, self._recover, self._device = case, recover, device
        packing = PackingPlan(1, 1 if together else recover.rounds, recover.rounds)
        self._setup = build_engine(case.teacher, recover, case.spec, SEED, case.batches, device=device, packing=packing)
        self._engine = self._setup.engine

    def enter(self, rounds: Sequence[int]) -> int:
        schedule = Schedule.of(self._recover)
        batches = [self._case.batches[r] for r in rounds]
        scheduler = self._setup.scheduler(
            batches, {self._case.batches[r].id: r * schedule.round_length for r in rounds}
        )
        scheduler.enter()
        self._running = scheduler.running()
        self._states = [State.start(self._case.images(schedule.round(p.t))) for p in self._running]
        for scheduled, state in zip(self._running, self._states, strict=True):
            self._engine.enter(scheduled, state)
        self._rounds = [schedule.round(scheduled.t) for scheduled in self._running]
        return sum(p.batch.active(r) for p, r in zip(self._running, self._rounds, strict=True))

    def iterate(self, iterations: int) -> float | None:
        launched: list[float] = []

        def after_iteration(images: int) -> bool:
            launched.append(time.perf_counter())
            return False

        while len(launched) < iterations:
            self._engine.run(self._running, self._states, iterations - len(launched), after_iteration)
        free = launched[:MAX_QUEUED_ITERATIONS]  # until here the host waits for nothing
        if self._device.type == "cpu" or len(free) == 1:
            return None
        return (free[-1] - free[0]) / (len(free) - 1)

    def outcome(self, round_index: int) -> Outcome:
        place = self._rounds.index(round_index)
        state = self._engine.snapshot(self._running[place], self._states[place])
        return _outcome(state, self._running[place].batch.active(round_index), self._recover)


class _InType(nn.Module):
    """A network in a type: images are turned to it, logits back."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._network, self._dtype = frozen_copy(network, dtype).eval(), dtype

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self._network(images.to(self._dtype))
        return logits.to(images.dtype)


def _outcome(state: State, active: int, recover: Recover) -> Outcome:
    """Adam's first moment after one step from zero is the gradient times 1 - b1."""
    return Outcome(state.curve[0][5], state.exp_avg[:active].cpu() / (1 - recover.betas[0]))
