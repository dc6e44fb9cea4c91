"""Take all batches of a pipeline through an engine."""

from collections.abc import Callable, Sequence

from delt_hpc.recovery.engine import Engine
from delt_hpc.recovery.scheduler import BatchScheduler, ScheduledBatch
from delt_hpc.recovery.state import State


def run_batches(
    engine: Engine,
    scheduler: BatchScheduler,
    load: Callable[[ScheduledBatch], State],
    finish: Callable[[ScheduledBatch, State], None],
    after_iteration: Callable[[int], bool] = lambda images: False,
    between: Callable[[Sequence[tuple[ScheduledBatch, State]]], None] = lambda travelling: None,
) -> None:
    """Until the last batch has arrived.

    Args:
        load: the state, on the CPU, of a batch that enters.
        finish: takes the state of one that has arrived, a copy on the CPU.
        after_iteration: called with the active images of a pass; true asks for `between` soon.
        between: called where all states are consistent, with the batches on their way; their images are the engine's
            (`Engine.snapshot`).
    """
    states: dict[str, State] = {}
    while scheduler:
        for scheduled in scheduler.enter():
            states[scheduled.batch.id] = state = load(scheduled)
            engine.enter(scheduled, state)
        running = scheduler.running()
        done = engine.run(running, [states[p.batch.id] for p in running], scheduler.stretch(), after_iteration)
        for scheduled in scheduler.advance(done):
            finish(scheduled, engine.snapshot(scheduled, states.pop(scheduled.batch.id)))
        between([(scheduled, states[scheduled.batch.id]) for scheduled in scheduler.travelling])
