"""Which batches share a pass, and for how many iterations: pipelining of batches over rounds.

A batch of DELT has few active images in early rounds, and every round has another number of them. Batches are
independent, so several can share one forward and backward pass. With M rounds and M batches, each one round behind the
other, a pass holds the active images of all rounds at once, which is a constant number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from delt_hpc.recovery.batches import Batch
from delt_hpc.recovery.schedule import Schedule

if TYPE_CHECKING:
    from delt_hpc.recovery.state import State


@dataclass(frozen=True)
class PackingPlan:
    """How batches share a pass: in `lanes` independent lanes, with `places` batches in each.

    In a lane a batch starts `stride` rounds after the one before it, so place p always holds a batch that is in one of
    the rounds p * stride to (p + 1) * stride - 1.

    Attributes:
        padded: every pass has the same number of images, and the position of a batch in it depends on its round and
            lane alone. Free positions hold padding whose results are discarded.
    """

    lanes: int
    stride: int
    rounds: int
    padded: bool = False

    @staticmethod
    def of(batches: int, rounds: int, segments: int, deterministic: bool) -> PackingPlan:
        """The plan for a number of batches with at most `segments` of them in a pass.

        If all batches fit into one pass they start together. Otherwise they are staggered by rounds, which keeps passes
        full and of constant size. With `deterministic` the plan does not depend on the number of batches.
        """
        if segments == 1:
            return PackingPlan(1, rounds, rounds)
        if not deterministic and batches <= segments:
            return PackingPlan(batches, rounds, rounds)
        return PackingPlan(max(1, segments // rounds), -(-rounds // segments), rounds, deterministic)

    @property
    def places(self) -> int:
        """Batches of one lane that share a pass."""
        return -(-self.rounds // self.stride)

    @property
    def segments(self) -> int:
        """The largest number of batches in a pass."""
        return self.lanes * self.places

    def place(self, round_index: int) -> int:
        return round_index // self.stride

    def last_round(self, place: int) -> int:
        return min(self.rounds, (place + 1) * self.stride) - 1


@dataclass(frozen=True)
class Capacity:
    """The numbers of images that the engine's buffers must hold.

    Attributes:
        slot: images of one batch.
        places: active images of one batch, for each place.
        images: active images of a whole pass.
    """

    slot: int
    places: tuple[int, ...]
    images: int

    @staticmethod
    def of(batches: Sequence[Batch], packing: PackingPlan) -> Capacity:
        """Enough for any of these batches."""
        places = tuple(
            max(batch.active(packing.last_round(place)) for batch in batches) for place in range(packing.places)
        )
        return Capacity(max(len(batch.entries) for batch in batches), places, packing.lanes * sum(places))


@dataclass
class ScheduledBatch:
    """A batch and how far it is.

    Attributes:
        t: iterations done.
        slot: which part of the engine's buffers holds its images while it is in flight; -1 before.
        place: its place in the lane while it is in flight; -1 before.
    """

    batch: Batch
    lane: int
    t: int = 0
    slot: int = -1
    place: int = -1


class BatchScheduler:
    """Decides which batches take part in the next pass.

    A waiting batch enters when its place in its lane is free: place 0 for a new batch, a later one for a resumed batch.

    Args:
        sizes: image size in each block, pixels; by default there is one block.
    """

    def __init__(
        self,
        waiting: Sequence[ScheduledBatch],
        packing: PackingPlan,
        schedule: Schedule,
        sizes: Sequence[int] = (0,),
    ) -> None:
        self._packing, self._schedule, self._sizes = packing, schedule, sizes
        # The most advanced ones first: a batch cannot overtake another in its lane.
        self._waiting = sorted(waiting, key=lambda scheduled: -scheduled.t)
        self._in_flight: list[ScheduledBatch] = []
        self._free_slots = list(range(packing.segments))[::-1]

    def __bool__(self) -> bool:
        """Whether any batch is unfinished."""
        return bool(self._waiting or self._in_flight)

    @property
    def in_flight(self) -> tuple[ScheduledBatch, ...]:
        """Batches that have entered and are not finished."""
        return tuple(self._in_flight)

    @property
    def waiting(self) -> tuple[ScheduledBatch, ...]:
        """Batches that have not entered yet, in the order in which they will."""
        return tuple(self._waiting)

    def enter(self) -> list[ScheduledBatch]:
        """Start all waiting batches whose place is free, and return them."""
        entered = []
        for scheduled in list(self._waiting):
            place = self._packing.place(self._schedule.round(scheduled.t))
            if self._free_slots and not self._occupied(place, scheduled.lane):
                scheduled.slot, scheduled.place = self._free_slots.pop(), place
                self._waiting.remove(scheduled)
                self._in_flight.append(scheduled)
                entered.append(scheduled)
        return entered

    def running(self) -> list[ScheduledBatch]:
        """The batches of the next pass, by place and lane.

        A batch whose next place is still occupied pauses. Images of a pass have the same size, so if batches that were
        resumed are in blocks of different sizes, most of them go on, and the others pause; of equally many, those that
        are least advanced go on, and so catch up.
        """
        by_size: dict[int, list[ScheduledBatch]] = {}
        for s in sorted(self._in_flight, key=lambda scheduled: scheduled.t):
            if s.place == self._packing.place(self._schedule.round(s.t)):
                by_size.setdefault(self._sizes[self._schedule.block(s.t)], []).append(s)
        running = max(by_size.values(), key=len, default=[])
        return sorted(running, key=lambda scheduled: (scheduled.place, scheduled.lane))

    def iterations_to_border(self) -> int:
        """Iterations until the first of the running batches reaches the end of its round or block."""
        return min(self._schedule.iterations_to_border(scheduled.t) for scheduled in self.running())

    def starts_block(self, scheduled: ScheduledBatch) -> bool:
        """Whether the batch is about to begin a block other than the first one."""
        return self._schedule.starts_block(scheduled.t)

    def advance(self, iterations: int) -> list[ScheduledBatch]:
        """Count iterations of the running batches; remove and return the finished ones."""
        for scheduled in self.running():
            scheduled.t += iterations
        finished = [scheduled for scheduled in self._in_flight if scheduled.t >= self._schedule.iterations]
        for scheduled in finished:
            self._in_flight.remove(scheduled)
            self._free_slots.append(scheduled.slot)
        for scheduled in sorted(self._in_flight, key=lambda scheduled: -scheduled.t):
            place = self._packing.place(self._schedule.round(scheduled.t))
            if place != scheduled.place and not self._occupied(place, scheduled.lane):
                scheduled.place = place
        return finished

    def _occupied(self, place: int, lane: int) -> bool:
        return any(scheduled.place == place and scheduled.lane == lane for scheduled in self._in_flight)


class BatchEngine(Protocol):
    """What `run_batches` needs of the packed engine; see `block_engine.BlockEngine`."""

    def enter(self, scheduled: ScheduledBatch, state: State) -> None: ...

    def run(
        self,
        running: Sequence[ScheduledBatch],
        states: Sequence[State],
        iterations: int,
        after_iteration: Callable[[int], bool],
    ) -> int: ...

    def snapshot(self, scheduled: ScheduledBatch, state: State) -> State: ...

    def begin_block(self, scheduled: ScheduledBatch, state: State) -> None: ...


def run_batches(
    engine: BatchEngine,
    scheduler: BatchScheduler,
    load: Callable[[ScheduledBatch], State],
    finish: Callable[[ScheduledBatch, State], None],
    after_iteration: Callable[[int], bool] = lambda images: False,
    after_run: Callable[[Sequence[tuple[ScheduledBatch, State]]], None] = lambda in_flight: None,
) -> None:
    """Run the engine until all batches of the scheduler are finished.

    Args:
        load: returns the state of a batch that enters, on the CPU.
        finish: receives the final state of a batch, a copy on the CPU.
        after_iteration: called with the number of active images after each iteration; if it returns true the engine
            stops early, and `after_run` is called soon.
        after_run: called between two runs of the engine with the batches in flight. Their iteration counts and losses
            are up to date; their images are in the engine's buffers (`Engine.snapshot`).
    """
    states: dict[str, State] = {}
    while scheduler:
        for scheduled in scheduler.enter():
            states[scheduled.batch.id] = state = load(scheduled)
            engine.enter(scheduled, state)
        running = scheduler.running()
        running_states = [states[scheduled.batch.id] for scheduled in running]
        done = engine.run(running, running_states, scheduler.iterations_to_border(), after_iteration)
        for scheduled in scheduler.advance(done):
            finish(scheduled, engine.snapshot(scheduled, states.pop(scheduled.batch.id)))
        for scheduled in running:
            if scheduler.starts_block(scheduled):
                engine.begin_block(scheduled, states[scheduled.batch.id])
        after_run([(scheduled, states[scheduled.batch.id]) for scheduled in scheduler.in_flight])
