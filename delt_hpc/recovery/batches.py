"""Which images are optimised together. A batch is a pure function of the class count and the configuration."""

from dataclasses import dataclass

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.schema import Recover
from delt_hpc.errors import UserError
from delt_hpc.recovery.schedule import entry_rounds


@dataclass(frozen=True)
class Entry:
    """One image of a batch."""

    class_index: int
    number: int  # place in its class's selection, from 0
    round: int  # in which it enters


@dataclass(frozen=True)
class Batch:
    """Images of classes first..last, ordered by entry round: the active ones are always a prefix."""

    first: int
    last: int
    part: int
    parts: int
    entries: tuple[Entry, ...]

    @property
    def id(self) -> str:
        """Name of its folder and key of its random draws: 00020-00029, or 00007-00007.p1 for a part of a class."""
        return str(self.classes) if self.parts == 1 else f"{self.classes}.p{self.part}"

    @property
    def classes(self) -> ClassRange:
        return ClassRange(self.first, self.last)

    def active(self, round_index: int) -> int:
        """How many images are optimised in that round."""
        return sum(entry.round <= round_index for entry in self.entries)


def block_size(ipc: int, recover: Recover) -> int:
    """Classes a batch spans; class ranges start and end at multiples of it."""
    return recover.batch_size if recover.batching == "mixed" else max(1, recover.batch_size // ipc)


def plan(classes: int, ipc: int, recover: Recover) -> list[Batch]:
    """All batches, in class order.

    `by_class`: batch_size // ipc whole classes; an ipc above batch_size cuts a class into the fewest equal batches that
    fit, image i going to batch i mod k, each running all rounds on its share. `mixed`: the number-th image of each of
    batch_size consecutive classes, ipc times.
    """
    block = block_size(ipc, recover)
    parts = ipc if recover.batching == "mixed" else -(-ipc // recover.batch_size)
    batches = []
    for first in range(0, classes, block):
        last = min(first + block, classes) - 1
        for part in range(parts):
            numbers = range(part, ipc, parts)
            rounds = entry_rounds(len(numbers), recover.rounds)
            entries = [
                Entry(class_index, number, entry_round)
                for class_index in range(first, last + 1)
                for number, entry_round in zip(numbers, rounds, strict=True)
            ]
            entries.sort(key=lambda entry: entry.round)  # stable: classes stay in order within a round
            batches.append(Batch(first, last, part, parts, tuple(entries)))
    return batches


def of_classes(batches: list[Batch], classes: ClassRange) -> list[Batch]:
    """The batches of a class range.

    Raises:
        UserError: the range cuts a batch.
    """
    for batch in batches:
        if classes.overlaps(batch.classes) and not classes.contains(batch.classes):
            raise UserError(
                f"classes {classes} cut the batch of classes {batch.classes}",
                where="--classes",
                expected=f"ranges that begin and end with a batch, e.g. {batch.classes}; batches span"
                f" {len(batch.classes)} classes (recover.batch_size // select.ipc)",
            )
    return [batch for batch in batches if classes.contains(batch.classes)]
