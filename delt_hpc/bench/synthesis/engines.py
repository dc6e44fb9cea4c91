"""Recovery engines whose batches stay in their round, so that iterations can be repeated, timed and checked."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from delt_hpc.bench.synthesis.cases import SEED, Case
from delt_hpc.config.schema import Recover
from delt_hpc.recovery import reference
from delt_hpc.recovery.augmentation import augment, draw_view
from delt_hpc.recovery.device_tables import draw_key
from delt_hpc.recovery.engine_setup import build_engine
from delt_hpc.recovery.objective import Objective
from delt_hpc.recovery.precision import NumericFormat, backend_flags
from delt_hpc.recovery.schedule import Schedule
from delt_hpc.recovery.scheduler import PackingPlan
from delt_hpc.recovery.state import State
from delt_kernels.teacher.frozen import frozen_copy


class Outcome(NamedTuple):
    """Of a batch's first iteration: the loss, and the gradient of the active images [B, 3, S, S] on the CPU."""

    loss: float
    gradient: Tensor


class Held(Protocol):
    """An engine whose iterations change the images, but not the round."""

    def enter(self, rounds: Sequence[int]) -> int:
        """Load the batches of these rounds, each at the start of its round. Returns the images of a pass."""

    def iterate(self, iterations: int) -> None:
        """Run at most a round's length of iterations; they are finished when this returns."""

    def outcome(self, round_index: int) -> Outcome:
        """Of a loaded batch, after the first iteration."""


class HeldReference:
    """The published formula, one batch at a time, in any precision and optionally compiled.

    Its iteration is the reference engine's. For a fair comparison it may use cuDNN's search for the fastest algorithms
    and TF32, which the reference engine does not.

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
        network = _CastNetwork(case.teacher, numeric_format.network_dtype or dtype)
        objective = Objective(network, self._recover.r_bn, self._recover.first_bn_weight)
        self._objective = torch.compile(objective, fullgraph=True) if compiled else objective

    def enter(self, rounds: Sequence[int]) -> int:
        (self._round,) = rounds
        self._batch = self._case.batches[self._round]
        self.state = State.start(self._case.images(self._round).to(self._device, self._dtype))
        self._labels = torch.tensor([entry.class_index for entry in self._batch.entries], device=self._device)
        return self._batch.active(self._round)

    def iterate(self, iterations: int) -> None:
        with backend_flags(tf32=self._format.tf32):
            for i in range(iterations):
                self._iteration(self._round * self._schedule.round_length + i)

    def outcome(self, round_index: int) -> Outcome:
        assert round_index == self._round
        return _outcome(self.state, self._batch.active(round_index), self._recover)

    def _iteration(self, t: int) -> None:
        """As in `reference.recover`."""
        recover, spec, state, batch = self._recover, self._case.spec, self.state, self._batch
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


class HeldPacked:
    """The packed engine.

    Args:
        recover: with precision, kernels and compilation.
        packed: all rounds in one pass; else one batch at a time.
    """

    def __init__(self, case: Case, recover: Recover, device: torch.device, *, packed: bool) -> None:
        self._case, self._schedule, self._recover = case, Schedule.of(recover), recover
        packing = PackingPlan(1, 1 if packed else recover.rounds, recover.rounds)
        self._setup = build_engine(case.teacher, recover, case.spec, SEED, case.batches, device=device, packing=packing)
        self._engine = self._setup.engine

    def enter(self, rounds: Sequence[int]) -> int:
        batches = [self._case.batches[r] for r in rounds]
        started = {self._case.batches[r].id: r * self._schedule.round_length for r in rounds}
        scheduler = self._setup.scheduler(batches, started)
        scheduler.enter()
        self._running = scheduler.running()
        self._rounds = [self._schedule.round(scheduled.t) for scheduled in self._running]
        self._states = [State.start(self._case.images(r)) for r in self._rounds]
        for scheduled, state in zip(self._running, self._states, strict=True):
            self._engine.enter(scheduled, state)
        return sum(p.batch.active(r) for p, r in zip(self._running, self._rounds, strict=True))

    def iterate(self, iterations: int) -> None:
        while iterations:
            iterations -= self._engine.run(self._running, self._states, iterations, lambda images: False)

    def outcome(self, round_index: int) -> Outcome:
        place = self._rounds.index(round_index)
        state = self._engine.snapshot(self._running[place], self._states[place])
        return _outcome(state, self._running[place].batch.active(round_index), self._recover)


class _CastNetwork(nn.Module):
    """A frozen network in another type: images are converted to it, logits back."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._network, self._dtype = frozen_copy(network, dtype).eval(), dtype

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self._network(images.to(self._dtype))
        return logits.to(images.dtype)


def _outcome(state: State, active: int, recover: Recover) -> Outcome:
    """Adam's first moment after one step from zero is the gradient times 1 - beta1."""
    return Outcome(state.curve[0][5], state.exp_avg[:active].cpu() / (1 - recover.betas[0]))
