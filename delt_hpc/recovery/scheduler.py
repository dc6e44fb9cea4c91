"""Which batches travel together, and for how long: a pipeline of early-late rounds. Pure; no tensors.

Early rounds have few images and every round another number of them. Independent batches at different rounds together
have one constant number: with M rounds and M batches a round apart, the active images of a pass are those of every
round at once. Nothing about any image changes, only who travels beside whom.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from delt_hpc.recovery.batches import Batch
from delt_hpc.recovery.schedule import Schedule


@dataclass(frozen=True)
class PackingPlan:
    """`width` lanes of batches, of which each follows the one before it `stride` rounds later.

    Attributes:
        padded: every pass has the same number of images and a batch's place among them depends on its round and lane
            alone; places without a batch are filled with images that nothing comes of.
    """

    width: int
    stride: int
    rounds: int
    padded: bool = False

    @staticmethod
    def of(batches: int, rounds: int, segments: int, deterministic: bool) -> "PackingPlan":
        """How `batches` travel with at most `segments` in a pass.

        More batches than fit travel staggered by rounds, which keeps passes full and their size constant; fewer all
        start together. Under `deterministic` the choice does not depend on the number of batches.
        """
        if segments == 1:
            return PackingPlan(1, rounds, rounds)
        if not deterministic and batches <= segments:
            return PackingPlan(batches, rounds, rounds)
        return PackingPlan(max(1, segments // rounds), -(-rounds // segments), rounds, deterministic)

    @property
    def places(self) -> int:
        """Batches of one lane that travel at the same time."""
        return -(-self.rounds // self.stride)

    @property
    def segments(self) -> int:
        """Most batches in a pass."""
        return self.width * self.places

    def place(self, round_index: int) -> int:
        return round_index // self.stride

    def last_round(self, place: int) -> int:
        return min(self.rounds, (place + 1) * self.stride) - 1


@dataclass(frozen=True)
class Capacity:
    """How many images there is room for.

    Attributes:
        slot: of a batch.
        places: active ones, of a batch in each place.
        most: active ones, of a pass.
    """

    slot: int
    places: tuple[int, ...]
    most: int

    @staticmethod
    def of(batches: Sequence[Batch], packing: PackingPlan) -> "Capacity":
        """For any of the batches."""
        places = tuple(
            max(batch.active(packing.last_round(place)) for batch in batches) for place in range(packing.places)
        )
        return Capacity(max(len(batch.entries) for batch in batches), places, packing.width * sum(places))


@dataclass
class ScheduledBatch:
    """A batch on its way, t iterations done."""

    batch: Batch
    lane: int
    t: int = 0
    slot: int = -1  # where its images lie, from entering to leaving
    place: int = -1


class BatchScheduler:
    """Fills, turns and drains. A batch enters when its place in its lane is free: the first, or, resumed, that of t."""

    def __init__(self, waiting: Sequence[ScheduledBatch], packing: PackingPlan, schedule: Schedule) -> None:
        self._packing, self._schedule = packing, schedule
        # Those that are further go first: nothing may overtake in a lane.
        self._waiting = sorted(waiting, key=lambda scheduled: -scheduled.t)
        self._travelling: list[ScheduledBatch] = []
        self._slots = list(range(packing.segments))[::-1]

    def __bool__(self) -> bool:
        """Is there anything left to do?"""
        return bool(self._waiting or self._travelling)

    @property
    def travelling(self) -> tuple[ScheduledBatch, ...]:
        return tuple(self._travelling)

    def due(self) -> Iterator[ScheduledBatch]:
        """Who waits, in the order of entering."""
        yield from self._waiting

    def enter(self) -> list[ScheduledBatch]:
        """Let in whoever can come in, and say who that is."""
        entered = []
        for scheduled in list(self._waiting):
            place = self._packing.place(self._schedule.round(scheduled.t))
            if self._slots and not self._taken(place, scheduled.lane):
                scheduled.slot, scheduled.place = self._slots.pop(), place
                self._waiting.remove(scheduled)
                self._travelling.append(scheduled)
                entered.append(scheduled)
        return entered

    def running(self) -> list[ScheduledBatch]:
        """Who takes part in the next pass, by place and lane. A batch whose next place is still taken stands by."""
        there = [p for p in self._travelling if p.place == self._packing.place(self._schedule.round(p.t))]
        return sorted(there, key=lambda scheduled: (scheduled.place, scheduled.lane))

    def stretch(self) -> int:
        """Iterations until the first of the running batches comes to the end of its round."""
        length = self._schedule.round_length
        return min(length - scheduled.t % length for scheduled in self.running())

    def advance(self, iterations: int) -> list[ScheduledBatch]:
        """The running batches are that much further; those that have arrived leave and are returned."""
        for scheduled in self.running():
            scheduled.t += iterations
        arrived = [scheduled for scheduled in self._travelling if scheduled.t >= self._schedule.iterations]
        for scheduled in arrived:
            self._travelling.remove(scheduled)
            self._slots.append(scheduled.slot)
        for scheduled in sorted(self._travelling, key=lambda scheduled: -scheduled.t):
            place = self._packing.place(self._schedule.round(scheduled.t))
            if place != scheduled.place and not self._taken(place, scheduled.lane):
                scheduled.place = place
        return arrived

    def _taken(self, place: int, lane: int) -> bool:
        return any(scheduled.place == place and scheduled.lane == lane for scheduled in self._travelling)
