"""Take all batches of a pipeline through an engine."""

from collections.abc import Callable, Sequence

from delt_hpc.recovery.packed import Engine
from delt_hpc.recovery.packing import Passenger, Pipeline
from delt_hpc.recovery.state import State


def drive(
    engine: Engine,
    pipeline: Pipeline,
    load: Callable[[Passenger], State],
    finish: Callable[[Passenger, State], None],
    after_iteration: Callable[[int], bool] = lambda images: False,
    between: Callable[[Sequence[tuple[Passenger, State]]], None] = lambda travelling: None,
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
    while pipeline:
        for passenger in pipeline.enter():
            states[passenger.batch.id] = state = load(passenger)
            engine.enter(passenger, state)
        running = pipeline.running()
        done = engine.run(running, [states[p.batch.id] for p in running], pipeline.stretch(), after_iteration)
        for passenger in pipeline.advance(done):
            finish(passenger, engine.snapshot(passenger, states.pop(passenger.batch.id)))
        between([(passenger, states[passenger.batch.id]) for passenger in pipeline.travelling])
