"""Recovery engines whose batches stay in their round, so that iterations can be repeated, timed and checked."""

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from delt_hpc.bench.synthesis.cases import SEED, Case
from delt_hpc.config.schema import Recover
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.recovery import reference
from delt_hpc.recovery.batches import Batch
from delt_hpc.recovery.device_tables import draw_key
from delt_hpc.recovery.engine_setup import build_engine
from delt_hpc.recovery.schedule import Schedule
from delt_hpc.recovery.scheduler import PackingPlan
from delt_hpc.recovery.state import State


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
    """The reference engine, one batch at a time; for a fair comparison with cuDNN's search for the fastest algorithms.

    Args:
        dtype: of everything, float32 or float64.
    """

    def __init__(
        self, case: Case, device: torch.device, *, tf32: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        self._case, self._device, self._tf32, self._dtype = case, device, tf32, dtype
        self._recover = case.recipe.recover()
        self._teacher = copy.deepcopy(case.teacher).to(dtype)

    def enter(self, rounds: Sequence[int]) -> int:
        (round_index,) = rounds
        self._batch = self._case.batches[round_index]
        self.state = State.start(self._case.images(round_index).to(self._device, self._dtype))
        self.state.t = self._first = round_index * self._recover.round_length
        self._active = self._batch.active(round_index)
        return self._active

    def iterate(self, iterations: int) -> None:
        if self.state.t + iterations > self._first + self._recover.round_length:
            self.state.t = self._first
        iterate_reference(
            self.state,
            self._batch,
            self._teacher,
            self._recover,
            self._case.spec,
            iterations,
            tf32=self._tf32,
            cudnn_benchmark=True,
        )

    def outcome(self, round_index: int) -> Outcome:
        return _outcome(self.state, self._active, self._recover)


class _EnoughError(Exception):
    """Ends the reference engine after the wanted number of iterations."""


def iterate_reference(
    state: State,
    batch: Batch,
    teacher: nn.Module,
    recover: Recover,
    spec: DatasetSpec,
    iterations: int,
    *,
    tf32: bool = False,
    cudnn_benchmark: bool = False,
) -> None:
    """Run a few iterations of the reference engine, from state.t on."""
    end = state.t + iterations

    def stop(state: State, active: int) -> None:
        if state.t == end:
            raise _EnoughError

    with suppress(_EnoughError):
        reference.recover(
            state,
            batch,
            teacher,
            recover,
            spec,
            draw_key(SEED, batch),
            stop,
            tf32=tf32,
            cudnn_benchmark=cudnn_benchmark,
        )


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


def _outcome(state: State, active: int, recover: Recover) -> Outcome:
    """Adam's first moment after one step from zero is the gradient times 1 - beta1."""
    return Outcome(state.curve[0][5], state.exp_avg[:active].cpu() / (1 - recover.betas[0]))
