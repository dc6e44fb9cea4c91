"""The packed engine for blocks: one engine for each image size, with one network."""

from collections.abc import Callable, Mapping, Sequence

from delt_hpc.config.schema import Recover
from delt_hpc.recovery.blocks import begin_block
from delt_hpc.recovery.engine import Engine
from delt_hpc.recovery.scheduler import ScheduledBatch
from delt_hpc.recovery.state import State


class BlockEngine:
    """Moves batches between the engines of the sizes; the batches of a pass have the same size.

    Args:
        engines: by image size, pixels.
        size: of the distilled images, pixels.
    """

    def __init__(self, engines: Mapping[int, Engine], recover: Recover, size: int) -> None:
        self._engines, self._recover, self._size = engines, recover, size
        self._engine_of: dict[str, Engine] = {}  # of the batches in flight, by id

    @property
    def first_seconds(self) -> float:
        """See `Engine`; summed over the sizes."""
        return sum(engine.first_seconds for engine in self._engines.values())

    def enter(self, scheduled: ScheduledBatch, state: State) -> None:
        engine = self._engine_of[scheduled.batch.id] = self._engines[state.images.shape[-1]]
        engine.enter(scheduled, state)

    def snapshot(self, scheduled: ScheduledBatch, state: State) -> State:
        return self._engine_of[scheduled.batch.id].snapshot(scheduled, state)

    def begin_block(self, scheduled: ScheduledBatch, state: State) -> None:
        """Take a batch that has reached the end of a block to the next one (`blocks.begin_block`)."""
        moved = self.snapshot(scheduled, state)
        begin_block(moved, self._recover, self._size)
        state.images, state.exp_avg, state.exp_avg_sq = moved.images, moved.exp_avg, moved.exp_avg_sq
        self.enter(scheduled, state)

    def run(
        self,
        running: Sequence[ScheduledBatch],
        states: Sequence[State],
        iterations: int,
        after_iteration: Callable[[int], bool],
    ) -> int:
        return self._engine_of[running[0].batch.id].run(running, states, iterations, after_iteration)
