"""Recovery by its default settings, and by the engines that it is compared with.

The engines are given the whole recipe, because their defaults depend on the work ahead. A step is one iteration of each
pass of the recipe; then the batches jump to the end of their round.
"""

import copy
from typing import Any

import torch
from torch.utils.benchmark import timer  # waits for the device, then reads the clock

from delt_hpc.bench.stages.workload import ALLOWED, Block, Case, Settings, checked
from delt_hpc.bench.synthesis.cases import SEED, random_images, teacher
from delt_hpc.bench.synthesis.engines import iterate_reference
from delt_hpc.config.schema import Recover
from delt_hpc.recovery.auto import estimate_compilation
from delt_hpc.recovery.batches import Batch, plan
from delt_hpc.recovery.cuda_graph import WARM_UP
from delt_hpc.recovery.engine_setup import build_engine
from delt_hpc.recovery.precision import NumericFormat
from delt_hpc.recovery.schedule import Schedule
from delt_hpc.recovery.state import State

BATCHES_PER_SEGMENT = 2  # the pipeline of batches fills once and drains once
# Options of recovery. `uncompiled` is the packed engine with one batch in a pass.
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "uncompiled": {"precision": "float32", "compile": False, "segments": 1},
    "reference": {"engine": "reference", "precision": "float32"},
}


class _Recovery:
    def __init__(self, case: Case, settings: Settings) -> None:
        changes = {"batch_size": case.batch_size} if case.batch_size else {}
        self._case, self._recover = case, Recover(**OPTIONS[settings] | changes)
        self._schedule, self.batch_size = Schedule.of(self._recover), self._recover.batch_size
        self._teacher = teacher(case.network, case.spec).to(case.device)
        self._batches = plan(case.classes, case.ipc, self._recover)
        self.dtype = NumericFormat.of(self._recover, case.device).network_dtype or torch.float32

    def _start(self, batch: Batch, dtype: torch.dtype = torch.float32) -> State:
        return State.start(random_images(len(batch.entries), self._case.size, "images", batch.id).to(dtype))

    def _error(self, state: State) -> float:
        """Of the image gradient of the first batch's first iteration, which Adam's first moment is proportional to."""
        batch, exact = self._batches[0], self._start(self._batches[0], torch.float64).to(self._case.device)
        iterate_reference(exact, batch, copy.deepcopy(self._teacher).double(), self._recover, self._case.spec, 1)
        found, expected = (s.exp_avg[: batch.active(0)].cpu() for s in (state, exact))
        return checked(found, expected, ALLOWED[self.dtype])


class ReferenceRecovery(_Recovery):
    """The reference engine on the first batch."""

    def error(self) -> float:
        state = self._start(self._batches[0]).to(self._case.device)
        iterate_reference(state, self._batches[0], self._teacher, self._recover, self._case.spec, 1)
        return self._error(state)

    def block(self, steps: int) -> Block:
        batch, images = self._batches[0], 0
        state = self._start(batch).to(self._case.device)
        began = timer()
        for round_index in range(self._schedule.rounds):
            state.t = round_index * self._schedule.round_length
            iterate_reference(state, batch, self._teacher, self._recover, self._case.spec, steps)
            images += steps * batch.active(round_index)
        return Block(images, timer() - began)


class PackedRecovery(_Recovery):
    """The packed engine on as many batches as fill its passes."""

    def __init__(self, case: Case, settings: Settings) -> None:
        super().__init__(case, settings)
        batches, size = self._batches, case.size
        estimate = estimate_compilation(self._teacher, self._recover, batches, size, case.device)
        self._setup = build_engine(
            self._teacher, self._recover, case.spec, SEED, batches, device=case.device,
            compile_on_cpu=estimate.worthwhile,
        )  # fmt: skip
        self._used = self._batches[: BATCHES_PER_SEGMENT * self._setup.packing.segments]
        self._graphs_recorded = case.device.type == "cpu"

    def error(self) -> float:
        scheduler, engine = self._setup.scheduler(self._used[:1]), self._setup.engine
        (scheduled,) = scheduler.enter()
        state = self._start(scheduled.batch)
        engine.enter(scheduled, state)
        engine.run([scheduled], [state], 1, lambda images: False)
        return self._error(engine.snapshot(scheduled, state))

    def block(self, steps: int) -> Block:
        if not self._graphs_recorded:
            self._run(WARM_UP + 1)
            self._graphs_recorded = True
        return self._run(steps)

    def _run(self, steps: int) -> Block:
        scheduler, engine = self._setup.scheduler(self._used), self._setup.engine
        states, images, seconds = dict[str, State](), 0, 0.0
        while scheduler:
            for scheduled in scheduler.enter():
                state = states[scheduled.batch.id] = self._start(scheduled.batch)
                engine.enter(scheduled, state)
            running, left = scheduler.running(), scheduler.iterations_to_border()
            active = sum(s.batch.active(self._schedule.round(s.t)) for s in running)
            began = timer()
            done = engine.run(running, [states[s.batch.id] for s in running], min(steps, left), lambda images: False)
            seconds += timer() - began
            images += done * active
            scheduler.advance(left)
        return Block(images, seconds)
