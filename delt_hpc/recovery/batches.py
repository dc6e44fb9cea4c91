"""Which images are optimised together: a pure function of the class count and the configuration."""

from dataclasses import dataclass

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.schema import Recover
from delt_hpc.errors import UserError
from delt_hpc.recovery.schedule import entry_rounds


@dataclass(frozen=True)
class Entry:
    """One image of a batch."""

    class_index: int
    number: int  # index in the selection of its class
    round: int  # the round from which on it is optimised


@dataclass(frozen=True)
class Batch:
    """Images of classes first..last, sorted by entry round, so that the active ones always come first."""

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
        """The number of images that are optimised in this round; they come first."""
        return sum(entry.round <= round_index for entry in self.entries)


def block_size(ipc: int, recover: Recover) -> int:
    """The number of classes of a batch; class ranges start and end at multiples of it."""
    return recover.batch_size if recover.batching == "mixed" else max(1, recover.batch_size // ipc)


def plan(classes: int, ipc: int, recover: Recover) -> list[Batch]:
    """All batches of a run, in class order.

    `by_class`: a batch has batch_size // ipc whole classes. If ipc exceeds batch_size, a class is split evenly into the
    fewest batches that fit; image i goes to batch i mod k, and each batch runs all rounds on its own images.
    `mixed`: a batch has one image of each of batch_size consecutive classes, with the same number.
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
            entries.sort(key=lambda entry: entry.round)  # the sort is stable: within a round, classes stay in order
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
