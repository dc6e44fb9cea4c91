"""Distilled images beside the real images they started from, and which of them to show."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from delt_hpc.data.index import ClassMap
from delt_hpc.distilled.manifest import MANIFEST
from delt_hpc.ranking import selection
from delt_hpc.report import tables
from delt_hpc.report.content import SampleClass, SampleImage
from delt_hpc.run.folder import RunFolder

Item = TypeVar("Item")


@dataclass(frozen=True)
class Pair:
    """A distilled image (relative to distilled/) and its initial image (to selected/; None where it began as noise)."""

    class_index: int
    number: int
    distilled: str
    initial: str | None
    entry_round: int
    iterations: int


def read(run: RunFolder) -> list[Pair]:
    """Every distilled image, in class and number order."""
    numbers = ["class_index", "number", "entry_round", "iterations"]
    manifest = tables.read(run.distilled / MANIFEST, numbers, ["file", "source"])
    initial = _selected(run) if (manifest["source"] != "").any() else {}
    pairs = [
        Pair(
            class_index=int(row["class_index"]),
            number=int(row["number"]),
            distilled=row["file"],
            initial=initial.get((int(row["class_index"]), int(row["number"]))) if row["source"] else None,
            entry_round=int(row["entry_round"]),
            iterations=int(row["iterations"]),
        )
        for row in manifest.to_dict("records")
    ]
    return sorted(pairs, key=lambda pair: (pair.class_index, pair.number))


def sample(
    pairs: Sequence[Pair], classes: ClassMap, most_classes: int = 10, most_images: int = 10
) -> tuple[SampleClass, ...]:
    """Classes spread evenly over the class map, and of each, images spread evenly from first to last to enter."""
    of_class: dict[int, list[Pair]] = defaultdict(list)
    for pair in pairs:
        of_class[pair.class_index].append(pair)
    chosen = spread(sorted(of_class), most_classes)
    return tuple(
        SampleClass(
            index=index,
            folder=classes.folders[index],
            name=classes.names[index],
            images=tuple(_image(pair) for pair in spread(of_class[index], most_images)),
        )
        for index in chosen
    )


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """All items, or `most` of them at even distances, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _image(pair: Pair) -> SampleImage:
    return SampleImage(pair.number, pair.distilled, pair.initial, pair.entry_round, pair.iterations)


def _selected(run: RunFolder) -> dict[tuple[int, int], str]:
    path = run.selected / selection.TABLE
    if not path.exists():
        return {}
    table = tables.read(path, ["class_index", "number"], ["file"])
    return {(int(row["class_index"]), int(row["number"])): row["file"] for row in table.to_dict("records")}
