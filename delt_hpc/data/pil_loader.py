"""The reference loader: PIL and torchvision, in this process or in worker processes. It works without DALI."""

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from delt_hpc.data.bad_files import BadFile, BadFiles
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.crops import Crops
from delt_hpc.data.epochs import TrainingBatch, requested_batches
from delt_hpc.data.index import Index
from delt_hpc.data.transforms import Augmentation, BadImageError, Pixels, decode, evaluation, normalise, training
from delt_hpc.keyed_random import Key, uniforms

# For fewer images, starting worker processes costs more time than they save.
_MIN_IMAGES_FOR_WORKERS = 4096
# PIL stores an RGB pixel in four bytes.
_PIL_BYTES = 4

# Signals that ask the run to stop. The main process obeys them, after it has saved its state.
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Item(NamedTuple):
    """An image to be loaded; of training images also the epoch and the number of its batch in the epoch."""

    position: int
    epoch: int = 0
    step: int = 0


Transform = Callable[[Image.Image, Item], Pixels]


class Sample(NamedTuple):
    """An image, or the reason why it cannot be read."""

    item: Item
    pixels: Pixels | BadFile


class Loaded(NamedTuple):
    """A batch: pixels uint8 [B, S, S, 3] ([B, N, s, s, 3] of crops), or None if none of its files is readable."""

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
    by_class: bool = False,
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """See `delt_hpc.data.loader.evaluation_batches`. `threads` worker processes load if there are many images."""
    source = _ImageDataset(index, partial(_evaluate, evaluation(spec)))
    batches = _items(index.batches(positions, batch_size, by_class=by_class))
    for items, pixels in _load(source, batches, _workers(threads, len(positions)), device, bad):
        yield normalise(pixels, spec), np.asarray([item.position for item in items])


def crop_batches(
    index: Index,
    positions: np.ndarray,
    spec: DatasetSpec,
    batch_size: int,
    crops: Crops,
    *,
    device: torch.device,
    threads: int,
    bad: BadFiles,
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """See `delt_hpc.data.loader.crop_batches`. `threads` worker processes load if there are many images."""
    source = _ImageDataset(index, partial(_cut, crops, index.paths))
    batches = _items(index.batches(positions, batch_size, by_class=True))
    for items, pixels in _load(source, batches, _workers(threads, len(positions)), device, bad):
        images = normalise(pixels.flatten(0, 1), spec).unflatten(0, (-1, crops.number))
        yield images, np.asarray([item.position for item in items])


def training_batches(
    index: Index,
    positions: np.ndarray,
    spec: DatasetSpec,
    batch_size: int,
    epochs: range,
    first_step: int = 0,
    *,
    augmentation: Augmentation,
    key: tuple[Key, ...],
    device: torch.device,
    threads: int,
    bad: BadFiles,
    cache_mib: int = 0,
) -> Generator[TrainingBatch]:
    """See `delt_hpc.data.loader.TrainingSet.batches`. Decoded images are cached if there are no worker processes."""
    workers = _workers(threads, len(positions))
    transform = partial(_augment, training(spec, augmentation), key)
    source = _ImageDataset(index, transform, cache_bytes=0 if workers else cache_mib * 2**20)
    batches = (
        [Item(position, epoch, step) for position in batch.tolist()]
        for epoch, step, batch in requested_batches(positions, batch_size, epochs, first_step, *key)
    )
    for items, pixels in _load(source, batches, workers, device, bad):
        _, epoch, step = items[0]
        yield TrainingBatch(epoch, step, normalise(pixels, spec), np.asarray([item.position for item in items]))


# Module-level functions rather than closures, because they are pickled for worker processes.
def _evaluate(transform: Callable[[Image.Image], Pixels], image: Image.Image, _: Item) -> Pixels:
    return transform(image)


def _augment(
    transform: Callable[[Image.Image, Iterator[float]], Pixels], key: tuple[Key, ...], image: Image.Image, item: Item
) -> Pixels:
    return transform(image, uniforms(*key, "augment", item.epoch, item.position))


def _cut(crops: Crops, paths: Sequence[str], image: Image.Image, item: Item) -> Pixels:
    """All crops of an image, uint8 [number, side, side, 3]."""
    return np.stack([crops.cut(image, paths[item.position], number) for number in range(crops.number)])


def _items(batches: Iterable[np.ndarray]) -> Iterator[list[Item]]:
    for batch in batches:
        yield [Item(position) for position in batch.tolist()]


class _ImageDataset(Dataset[Sample]):
    """Images under a transform. An unreadable one is returned as a `BadFile`, for the main process to report.

    Decoded images are cached until they fill `cache_bytes`.
    """

    def __init__(self, index: Index, transform: Transform, cache_bytes: int = 0) -> None:
        self.index, self._transform, self._free_bytes = index, transform, cache_bytes
        self._cache: dict[int, Image.Image] = {}

    def __getitem__(self, item: Item) -> Sample:
        position = item.position
        path = self.index.paths[position]
        try:
            return Sample(item, self._transform(self._image(position), item))
        except BadImageError as error:
            reason = str(error).removeprefix(f"{self.index.root / path}: ")
            return Sample(item, BadFile(position, path, reason))

    def _image(self, position: int) -> Image.Image:
        cached = self._cache.get(position)
        if cached is not None:
            return cached
        image = decode(self.index.root / self.index.paths[position])
        size = image.width * image.height * _PIL_BYTES
        if size <= self._free_bytes:
            self._cache[position] = image
            self._free_bytes -= size
        return image


def _stack(samples: list[Sample]) -> Loaded:
    good = [(sample.item, sample.pixels) for sample in samples if not isinstance(sample.pixels, BadFile)]
    bad = [sample.pixels for sample in samples if isinstance(sample.pixels, BadFile)]
    pixels = torch.from_numpy(np.stack([pixels for _, pixels in good])) if good else None
    return Loaded([item for item, _ in good], pixels, bad)


def _load(
    source: _ImageDataset, batches: Iterable[list[Item]], workers: int, device: torch.device, bad: BadFiles
) -> Iterator[tuple[list[Item], Tensor]]:
    loader: DataLoader[Sample] = DataLoader(
        source,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_stack,
        pin_memory=device.type == "cuda",
        # Otherwise the loader would draw a base seed for its workers from torch's global generator.
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_ignore_stop_signals,
    )
    with _stop_signals_blocked():  # a new worker inherits this, until it ignores them
        loaded = iter(loader)
    for items, pixels, unreadable in loaded:
        bad.report(source.index.root, unreadable)
        if pixels is not None:
            yield items, pixels.to(device, non_blocking=True)


def _ignore_stop_signals(_: int) -> None:
    """A signal to the whole process group must not end the workers, which the main process needs until it stops."""
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@atexit.register
def _kill_workers() -> None:
    """End the workers that are left at exit; multiprocessing would send them SIGTERM, which they ignore, and wait."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _workers(configured: int, images: int) -> int:
    return configured if images >= _MIN_IMAGES_FOR_WORKERS else 0
