"""Distilled images beside the real images they started from: which of them to show, and their picture."""

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.index import ClassMap
from delt_hpc.data.transforms import decode, evaluation
from delt_hpc.distilled.manifest import MANIFEST
from delt_hpc.ranking import selection
from delt_hpc.report import tables
from delt_hpc.report.content import SampleClass, SampleImage
from delt_hpc.run import checksums
from delt_hpc.run.folder import RunFolder

CELL, GAP = 96, 8  # pixels of an image in the strip of a class, and between two images
SMALL = 64  # images of at most so many pixels are enlarged without interpolation
Item = TypeVar("Item")


@dataclass(frozen=True)
class Pair:
    """A distilled image and the real image it started from.

    Attributes:
        distilled: path below distilled/.
        initial: path below selected/; None if the image started from noise.
    """

    class_index: int
    number: int
    distilled: str
    initial: str | None
    entry_round: int
    iterations: int


@dataclass(frozen=True)
class Picture:
    """A distilled image, and the real image it started from unless that was noise."""

    distilled: Image.Image
    initial: Image.Image | None


def read_pairs(run: RunFolder) -> list[Pair]:
    """Every distilled image, in class and number order.

    Raises:
        UserError: the manifest or the table of selected images is damaged.
    """
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


def choose_samples(
    pairs: Sequence[Pair], classes: ClassMap, max_classes: int = 10, max_images: int = 10
) -> tuple[SampleClass, ...]:
    """Classes evenly spaced over the class map; of each, images evenly spaced over their order of entry."""
    by_class: dict[int, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_class[pair.class_index].append(pair)
    return tuple(
        SampleClass(
            index=index,
            folder=classes.folders[index],
            name=classes.names[index],
            images=tuple(_sample(pair) for pair in evenly_spaced(by_class[index], max_images)),
        )
        for index in evenly_spaced(sorted(by_class), max_classes)
    )


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` items at even distances, including the first and the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def read_pictures(run: RunFolder, sample: SampleClass, initial_spec: DatasetSpec) -> list[Picture]:
    """The sample images of a class.

    Args:
        initial_spec: how initial images become network input, which is how they are shown.

    Raises:
        BadImageError: an image cannot be read.
    """
    transform = evaluation(initial_spec)

    def initial(path: str) -> Image.Image:
        return Image.fromarray(np.asarray(transform(decode(run.selected / checksums.located(run.selected, path)))))

    return [
        Picture(decode(run.distilled / image.distilled), initial(image.initial) if image.initial else None)
        for image in sample.images
    ]


def draw_strip(pictures: Sequence[Picture], size: int) -> Image.Image:
    """The images of a class side by side, RGBA; initial images (if any) above the distilled ones.

    Images smaller than CELL pixels are enlarged by a whole factor without interpolation; larger ones are reduced to
    CELL.

    Args:
        size: of the distilled images, pixels.
    """
    cell = cell_size(size)
    has_initial = any(picture.initial for picture in pictures)
    step = cell + GAP
    canvas = Image.new("RGBA", (len(pictures) * step - GAP, (2 if has_initial else 1) * step - GAP))
    for column, picture in enumerate(pictures):
        if picture.initial:
            canvas.paste(_resize(picture.initial, cell), (column * step, 0))
        canvas.paste(_resize(picture.distilled, cell), (column * step, step if has_initial else 0))
    return canvas


def encode(image: Image.Image) -> bytes:
    """The file of an image on the page: lossless if it is small, because the page then enlarges its pixels."""
    file = io.BytesIO()
    if max(image.size) <= SMALL:
        image.save(file, format="PNG", optimize=True)
    else:
        image.convert("RGB").save(file, format="JPEG", quality=90)
    return file.getvalue()


def cell_size(size: int) -> int:
    """The pixels at which an image of `size` pixels is shown."""
    return max(1, CELL // size) * size if size <= CELL else CELL


def _resize(image: Image.Image, cell: int) -> Image.Image:
    resampling = Image.Resampling.NEAREST if image.width <= cell else Image.Resampling.LANCZOS
    return image.resize((cell, cell), resampling)


def _sample(pair: Pair) -> SampleImage:
    return SampleImage(pair.number, pair.distilled, pair.initial, pair.entry_round, pair.iterations)


def _selected(run: RunFolder) -> dict[tuple[int, int], str]:
    path = run.selected / selection.TABLE
    if not path.exists():
        return {}
    table = tables.read(path, ["class_index", "number"], ["file"])
    return {(int(row["class_index"]), int(row["number"])): row["file"] for row in table.to_dict("records")}
