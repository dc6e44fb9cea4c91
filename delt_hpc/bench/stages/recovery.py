"""Iterations of recovery by an engine, checked against the published formula in float64.

A step is one iteration of each pass of a recipe; then the batches jump to the end of their round.
"""

from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import timer  # waits for the device, then reads the clock

from delt_hpc.bench.stages.workload import ALLOWED, Block, Case, checked, random_images, teacher
from delt_hpc.config.schema import Recover
from delt_hpc.recovery import reference
from delt_hpc.recovery.auto import estimate_compilation
from delt_hpc.recovery.batches import Batch, plan
from delt_hpc.recovery.cuda_graph import WARM_UP
from delt_hpc.recovery.device_tables import draw_key
from delt_hpc.recovery.engine_setup import build_engine
from delt_hpc.recovery.precision import NumericFormat
from delt_hpc.recovery.schedule import Schedule
from delt_hpc.recovery.scheduler import PackingPlan, ScheduledBatch
from delt_hpc.recovery.state import State

SEED = 0
BATCHES_PER_SEGMENT = 2  # the pipeline of batches fills once and drains once
CHECKED_BATCHES = 2  # of the first pass; they have the fewest images
ALLOWED_TF32 = 0.1


class _Recovery:
    """
    Args:
        options: of `recover`; the work is that of the case.
    """

    def __init__(self, case: Case, **options: Any) -> None:
        self._case, self._recover = case, case.recover(**options)
        self._schedule, self.batch_size = Schedule.of(self._recover), self._recover.batch_size
        self._teacher = teacher(case.network, case.spec).to(case.device)
        self._batches = plan(case.classes, case.ipc, self._recover)
        self._format = NumericFormat.of(self._recover, case.device)
        self.dtype = self._format.network_dtype or torch.float32

    def _checked(self, state: State, batch: Batch, round_index: int) -> float:
        allowed = ALLOWED_TF32 if self._format.tf32 else ALLOWED[self.dtype]
        exact = _exact_gradient(self._case, self._batches.index(batch), round_index)
        return checked(_gradient(state, batch, round_index), exact, allowed)


class ReferenceRecovery(_Recovery):
    """The reference engine on the first batch.

    Args:
        cudnn_benchmark: let cuDNN search for the fastest algorithms.
    """

    def __init__(self, case: Case, *, tf32: bool = False, cudnn_benchmark: bool = False) -> None:
        super().__init__(case, engine="reference", precision="tf32" if tf32 else "float32")
        self._flags = {"tf32": tf32, "cudnn_benchmark": cudnn_benchmark}

    def error(self) -> float:
        state = _iterated(self._case, self._teacher, self._batches[0], self._recover, 0, **self._flags)
        return self._checked(state, self._batches[0], 0)

    def block(self, steps: int) -> Block:
        case, batch, images = self._case, self._batches[0], 0
        state = _start(case, batch)
        began = timer()
        for round_index in range(self._schedule.rounds):
            state.t = round_index * self._schedule.round_length
            _iterate(state, batch, self._teacher, self._recover, case, steps, **self._flags)
            images += steps * batch.active(round_index)
        return Block(images, steps * self._schedule.rounds, timer() - began)


class PackedRecovery(_Recovery):
    """The packed engine.

    Its options may depend on the work ahead, so it is given the whole recipe.

    Args:
        packed: one pass with a batch in each round (`True`), or one batch in all rounds one after the other (`False`).
            None: the packing that the options give, on as many batches as fill its passes.
    """

    def __init__(self, case: Case, *, packed: bool | None = None, **options: Any) -> None:
        super().__init__(case, **options)
        batches, rounds = self._batches, self._schedule.rounds
        packing = None if packed is None else PackingPlan(1, 1 if packed else rounds, rounds)
        estimate = estimate_compilation(self._teacher, self._recover, batches, case.size, case.device)
        self._setup = build_engine(
            self._teacher, self._recover, case.spec, SEED, batches, device=case.device, packing=packing,
            compile_on_cpu=estimate.worthwhile,
        )  # fmt: skip
        count = {None: BATCHES_PER_SEGMENT * self._setup.packing.segments, True: rounds, False: 1}[packed]
        if packed and len(batches) < count:
            raise ValueError(f"a pass needs {count} batches; there are {len(batches)}")
        self._used, self._steady = batches[:count], packed is True
        self._graphs_recorded = case.device.type == "cpu"

    def error(self) -> float:
        running, states = next(self._passes())
        self._setup.engine.run(running, states, 1, lambda images: False)
        found = zip(running[:CHECKED_BATCHES], states[:CHECKED_BATCHES], strict=True)
        return max(self._checked(self._setup.engine.snapshot(s, state), s.batch, self._round(s)) for s, state in found)

    def block(self, steps: int) -> Block:
        if not self._graphs_recorded:
            self._run(WARM_UP + 1)
            self._graphs_recorded = True
        return self._run(steps)

    def _passes(self) -> Iterator[tuple[list[ScheduledBatch], list[State]]]:
        """The batches of each pass, at the start of their rounds."""
        length = self._schedule.round_length
        started = {batch.id: i * length for i, batch in enumerate(self._used)} if self._steady else {}
        scheduler, states = self._setup.scheduler(self._used, started), dict[str, State]()
        while scheduler:
            for scheduled in scheduler.enter():
                state = states[scheduled.batch.id] = _start(self._case, scheduled.batch, device=torch.device("cpu"))
                self._setup.engine.enter(scheduled, state)
            running = scheduler.running()
            yield running, [states[scheduled.batch.id] for scheduled in running]
            if self._steady:
                return
            scheduler.advance(length)

    def _round(self, scheduled: ScheduledBatch) -> int:
        return self._schedule.round(scheduled.t)

    def _run(self, steps: int) -> Block:
        images, passes, seconds, most = 0, 0, 0.0, min(steps, self._schedule.round_length)
        for running, states in self._passes():
            active = sum(s.batch.active(self._round(s)) for s in running)
            began = timer()
            done = self._setup.engine.run(running, states, most, lambda images: False)
            seconds += timer() - began
            images, passes = images + done * active, passes + done
        return Block(images, passes, seconds)


@lru_cache(maxsize=CHECKED_BATCHES)
def _exact_gradient(case: Case, batch_index: int, round_index: int) -> Tensor:
    recover = case.recover(engine="reference")
    batch = plan(case.classes, case.ipc, recover)[batch_index]
    network = teacher(case.network, case.spec).to(case.device).double()
    return _gradient(_iterated(case, network, batch, recover, round_index), batch, round_index)


def _gradient(state: State, batch: Batch, round_index: int) -> Tensor:
    """A multiple of the gradient of the active images, which is Adam's first moment after one step from zero."""
    return state.exp_avg[: batch.active(round_index)].cpu()


def _start(case: Case, batch: Batch, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> State:
    images = random_images(len(batch.entries), case.size, "images", batch.id)
    return State.start(images.to(device or case.device, dtype))


def _iterated(case: Case, network: nn.Module, batch: Batch, recover: Recover, round_index: int, **flags: bool) -> State:
    """After the first iteration of a round by the reference engine, in the type of the network."""
    state = _start(case, batch, next(network.parameters()).dtype)
    state.t = round_index * Schedule.of(recover).round_length
    _iterate(state, batch, network, recover, case, 1, **flags)
    return state


class _EnoughError(Exception):
    """Ends the reference engine after the wanted number of iterations."""


def _iterate(
    state: State, batch: Batch, network: nn.Module, recover: Recover, case: Case, iterations: int, **flags: bool
) -> None:
    """Run a few iterations of the reference engine, from state.t on."""
    end = state.t + iterations

    def stop(state: State, active: int) -> None:
        if state.t == end:
            raise _EnoughError

    with suppress(_EnoughError):
        reference.recover(state, batch, network, recover, case.spec, draw_key(SEED, batch), stop, **flags)
