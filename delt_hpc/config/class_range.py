"""A range of class indices: how it is written on the command line and in file names."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from delt_hpc.errors import UserError

OPTION = "--classes"


@dataclass(frozen=True, order=True)
class ClassRange:
    """Consecutive classes, by index. Both ends are included.

    Raises:
        ValueError: `first` is negative or greater than `last`.
    """

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last:
            raise ValueError(f"not a class range: {self.first} to {self.last}")

    @classmethod
    def parse(cls, text: str) -> "ClassRange":
        """Read `A-B`, or `A` for a single class.

        Raises:
            UserError: the text is neither, or A is greater than B.
        """
        match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", text)
        if match:
            first, last = int(match[1]), int(match[2] or match[1])
            if first <= last:
                return cls(first, last)
        raise UserError("not a class range", where=f"{OPTION} {text}", expected="A-B with A <= B, or a single class")

    @classmethod
    def parse_many(cls, text: str, class_count: int) -> tuple["ClassRange", ...]:
        """Read ranges separated by commas, e.g. `0-9,20,21-30`; neighbouring and overlapping ones are joined.

        Raises:
            UserError: a part is not a range, or lies beyond the last class.
        """
        parts = [cls.parse(part.strip()) for part in text.split(",")]
        return cls.join(part.within(class_count) for part in parts)

    @classmethod
    def join(cls, ranges: Iterable["ClassRange"]) -> tuple["ClassRange", ...]:
        """The fewest ranges with the same classes, in ascending order."""
        joined: list[ClassRange] = []
        for one in sorted(ranges):
            if joined and one.first <= joined[-1].last + 1:
                joined[-1] = cls(joined[-1].first, max(joined[-1].last, one.last))
            else:
                joined.append(one)
        return tuple(joined)

    def within(self, class_count: int) -> "ClassRange":
        """This range, checked against the number of classes.

        Raises:
            UserError: it lies beyond the last class.
        """
        if self.last >= class_count:
            raise UserError(
                f"class {self.last} is beyond the last class",
                where=f"{OPTION} {self.first}-{self.last}",
                expected=f"0 to {class_count - 1}",
            )
        return self

    @property
    def indices(self) -> range:
        """The class indices."""
        return range(self.first, self.last + 1)

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __str__(self) -> str:
        """As in file names: 00020-00029."""
        return f"{self.first:05d}-{self.last:05d}"

    def overlaps(self, other: "ClassRange") -> bool:
        """Do the ranges share a class?"""
        return self.first <= other.last and other.first <= self.last

    def contains(self, other: "ClassRange") -> bool:
        """Are all classes of `other` in this range?"""
        return self.first <= other.first and other.last <= self.last
