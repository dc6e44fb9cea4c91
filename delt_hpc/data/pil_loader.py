"""Images through PIL and torchvision, in this process or in workers: the reference, and what is there without DALI."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from delt_hpc.data.bad_files import BadFile, BadFiles
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.epochs import TrainingBatch, shuffled_batches
from delt_hpc.data.index import Index
from delt_hpc.data.transforms import Augmentation, BadImageError, Pixels, decode, evaluation, normalise, training
from delt_hpc.keyed_random import Key, uniforms

# Below this many images the start of worker processes costs more than they save.
_FEW = 4096
# PIL keeps an RGB pixel in four bytes.
_PIL_BYTES = 4

Item = tuple[int, int]  # epoch, position
Transform = Callable[[Image.Image, Item], Pixels]


class Sample(NamedTuple):
    """An image, or why there is none."""

    item: Item
    pixels: Pixels | BadFile


class Loaded(NamedTuple):
    """A batch: pixels uint8 [B, S, S, 3], or None where no file of it was readable."""

    items: list[Item]
    pixels: Tensor | None
    bad: list[BadFile]


def evaluation_batches(
    index: Index,
    positions: np.ndarray,
    spec: DatasetSpec,
    batch_size: int,
    *,
    device: torch.device,
    threads: int,
    bad: BadFiles,
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """As `delt_hpc.data.loader.evaluation_batches`; `threads` worker processes read where there are many images."""
    source = _Images(index, partial(_evaluate, evaluation(spec)))
    batches = (
        [(0, position) for position in positions[start : start + batch_size].tolist()]
        for start in range(0, len(positions), batch_size)
    )
    for items, pixels in _load(source, batches, _workers(threads, len(positions)), device, bad):
        yield normalise(pixels, spec), np.asarray([position for _, position in items])


def training_batches(
    index: Index,
    positions: np.ndarray,
    spec: DatasetSpec,
    batch_size: int,
    epochs: range,
    *,
    augmentation: Augmentation,
    key: tuple[Key, ...],
    device: torch.device,
    threads: int,
    bad: BadFiles,
    keep_mib: int = 0,
) -> Iterator[TrainingBatch]:
    """As `delt_hpc.data.loader.TrainingSet.batches`; decoded images are kept where this process reads them itself."""
    workers = _workers(threads, len(positions))
    transform = partial(_augment, training(spec, augmentation), key)
    source = _Images(index, transform, cache=0 if workers else keep_mib * 2**20)
    batches = (
        [(epoch, position) for position in batch.tolist()]
        for epoch in epochs
        for batch in shuffled_batches(positions, batch_size, *key, "order", epoch)
    )
    for items, pixels in _load(source, batches, workers, device, bad):
        yield TrainingBatch(items[0][0], normalise(pixels, spec), np.asarray([position for _, position in items]))


# Plain functions rather than closures, so that worker processes can be handed them however they are started.
def _evaluate(transform: Callable[[Image.Image], Pixels], image: Image.Image, _: Item) -> Pixels:
    return transform(image)


def _augment(
    transform: Callable[[Image.Image, Iterator[float]], Pixels], key: tuple[Key, ...], image: Image.Image, item: Item
) -> Pixels:
    return transform(image, uniforms(*key, "augment", *item))


class _Images(Dataset[Sample]):
    """One image under its transform; an unreadable one is handed on as such, to be named in the main process.

    Decoded images are kept until they fill `cache` bytes.
    """

    def __init__(self, index: Index, transform: Transform, cache: int = 0) -> None:
        self.index, self._transform, self._room = index, transform, cache
        self._kept: dict[int, Image.Image] = {}

    def __getitem__(self, item: Item) -> Sample:
        position = item[1]
        path = self.index.paths[position]
        try:
            return Sample(item, self._transform(self._image(position), item))
        except BadImageError as error:
            reason = str(error).removeprefix(f"{self.index.root / path}: ")
            return Sample(item, BadFile(position, path, reason))

    def _image(self, position: int) -> Image.Image:
        kept = self._kept.get(position)
        if kept is not None:
            return kept
        image = decode(self.index.root / self.index.paths[position])
        size = image.width * image.height * _PIL_BYTES
        if size <= self._room:
            self._kept[position] = image
            self._room -= size
        return image


class _Batches(Sampler[list[Item]]):
    """Batches as they come; nothing is listed before it is needed."""

    def __init__(self, batches: Iterable[list[Item]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[Item]]:
        return iter(self._batches)


def _stack(samples: list[Sample]) -> Loaded:
    good = [(sample.item, sample.pixels) for sample in samples if not isinstance(sample.pixels, BadFile)]
    bad = [sample.pixels for sample in samples if isinstance(sample.pixels, BadFile)]
    pixels = torch.from_numpy(np.stack([pixels for _, pixels in good])) if good else None
    return Loaded([item for item, _ in good], pixels, bad)


def _load(
    source: _Images, batches: Iterable[list[Item]], workers: int, device: torch.device, bad: BadFiles
) -> Iterator[tuple[list[Item], Tensor]]:
    loader: DataLoader[Sample] = DataLoader(
        source,
        batch_sampler=_Batches(batches),
        num_workers=workers,
        collate_fn=_stack,
        pin_memory=device.type == "cuda",
        # The loader takes a base seed for its workers from torch's generator; nothing here uses it.
        generator=torch.Generator().manual_seed(0),
    )
    for items, pixels, unreadable in loader:
        bad.report(source.index.root, unreadable)
        if pixels is not None:
            yield items, pixels.to(device, non_blocking=True)


def _workers(asked: int, images: int) -> int:
    return asked if images >= _FEW else 0
