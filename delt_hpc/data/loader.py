"""Batches of images, by one of three backends. Loading returns positions in an index, never classes.

`torchvision` (PIL) is the reference; `dali-cpu` and `dali-gpu` give the same images within 1/255 a pixel, and the same
draws. Which one read the images is recorded with what was made from them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from delt_hpc.config.schema import Loader, OnBad
from delt_hpc.data import pil_loader
from delt_hpc.data.bad_files import BadFiles
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.epochs import TrainingBatch, steps
from delt_hpc.data.index import Index
from delt_hpc.data.transforms import Augmentation, normalise, quantise
from delt_hpc.errors import UserError
from delt_hpc.keyed_random import Key

Backend = Literal["dali-gpu", "dali-cpu", "torchvision"]


@dataclass(frozen=True)
class LoaderConfig:
    """How a process reads images.

    Attributes:
        device: where the images go.
        workers: threads of DALI, or worker processes of the PIL loader; 0 reads in this process.
        cache_mib: decoded images are kept up to this size, MiB.
        on_bad: what becomes of unreadable files.
    """

    loader: Loader
    device: torch.device
    workers: int = 0
    cache_mib: int = 0
    on_bad: OnBad = "raise"

    def backend(self, *, training: bool) -> Backend:
        """The backend for evaluation or for training images.

        `auto` is DALI on a GPU. On a CPU it is DALI for evaluation images; for training images it is PIL, which is
        faster there. Without DALI it is PIL.
        """
        if self.loader != "auto":
            return self.loader
        if not has_dali():
            return "torchvision"
        if self.device.type == "cuda":
            return "dali-gpu"
        return "torchvision" if training else "dali-cpu"

    def facts(self, *, training: bool) -> dict[str, str]:
        """What is recorded with results: the backend, and the versions of what decoded."""
        backend = self.backend(training=training)
        packages = ("pillow", "torchvision") if backend == "torchvision" else (_dali_package(), "pillow")
        return {"loader": backend} | {f"loader.{name}": version(name) for name in packages}


def check(loader: Loader, device: torch.device) -> None:
    """Refuse a backend that this machine does not have."""
    if loader.startswith("dali") and not has_dali():
        raise UserError(
            "DALI is not installed",
            where=f"machine.loader: {loader}",
            remedy="install nvidia-dali-cuda130, or set machine.loader=torchvision",
        )
    if loader == "dali-gpu" and device.type != "cuda":
        raise UserError(f"works on a GPU only, and the device is {device}", where="machine.loader: dali-gpu")
    if loader == "dali-cpu" and device.type == "cuda":
        raise UserError(
            "works without a GPU only", where="machine.loader: dali-cpu", expected="dali-gpu or torchvision"
        )


def has_dali() -> bool:
    return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None


def images(root: Path, paths: Sequence[str], spec: DatasetSpec, batch_size: int) -> Iterator[Tensor]:
    """The images of a few files, in order, by the reference backend: float32 [<= batch_size, 3, S, S] on the CPU.

    Raises:
        UserError: naming every unreadable file of the batch at hand.
    """
    index = Index(root, tuple(paths), np.zeros(len(paths), dtype=np.int64))
    loader_config = LoaderConfig("torchvision", torch.device("cpu"))
    for batch, _ in evaluation_batches(index, np.arange(len(paths)), spec, batch_size, loader_config, BadFiles()):
        yield batch.contiguous()


def evaluation_batches(
    index: Index, positions: np.ndarray, spec: DatasetSpec, batch_size: int, loader_config: LoaderConfig, bad: BadFiles
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Every asked image once, in order, under the exact evaluation transform.

    Args:
        positions: int64 [n], places in the index.
        bad: takes note of unreadable files.

    Yields:
        images float32 [B, 3, S, S] normalised on the device, and their positions int64 [B]; the last batch is smaller
        where the count asks for it, and so is one with files that were skipped.

    Raises:
        UserError: naming unreadable files, unless they are skipped.
    """
    batches: Iterator[tuple[Tensor, np.ndarray]] = _module(loader_config, training=False).evaluation_batches(
        index,
        positions,
        spec,
        batch_size,
        device=loader_config.device,
        threads=_threads(loader_config, training=False),
        bad=bad,
    )
    return batches


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Images of an index under random augmentation, reshuffled every epoch.

    Every draw is a function of (key, epoch, position): batches do not depend on backend, workers, caching or restarts
    beyond the pixels' last bit.
    """

    index: Index
    positions: np.ndarray
    spec: DatasetSpec
    augmentation: Augmentation
    batch_size: int
    key: tuple[Key, ...]
    loader_config: LoaderConfig
    bad: BadFiles = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bad", BadFiles(self.loader_config.on_bad))

    def batches(self, first: int, last: int) -> Iterator[TrainingBatch]:
        """The batches of epochs first..last-1, one epoch after the other without a pause.

        The last batch of an epoch is smaller where the count asks for it; a single left-over image joins the batch
        before it, since BatchNorm cannot be trained on one.
        """
        loader_config = self.loader_config
        batches: Iterator[TrainingBatch] = _module(loader_config, training=True).training_batches(
            self.index,
            self.positions,
            self.spec,
            self.batch_size,
            range(first, last),
            augmentation=self.augmentation,
            key=self.key,
            device=loader_config.device,
            threads=_threads(loader_config, training=True),
            bad=self.bad,
            keep_mib=loader_config.cache_mib,
        )
        return batches

    def steps(self) -> int:
        """Batches an epoch, where no file is bad."""
        return steps(len(self.positions), self.batch_size)

    def labels(self, batch: TrainingBatch) -> Tensor:
        """Class indices of a batch, int64 [B], on its device."""
        return torch.from_numpy(self.index.labels[batch.positions]).to(batch.images.device, non_blocking=True)


class ValidationSet:
    """All images of an index under the evaluation transform, cached on the device as uint8 if they fit.

    Cached images are normalised anew in every pass: a quarter of the memory, and the same values as read from files.

    Attributes:
        bad: the files that were skipped.
    """

    def __init__(self, index: Index, spec: DatasetSpec, batch_size: int, loader_config: LoaderConfig) -> None:
        self._index, self._spec, self._batch_size, self._loader_config = index, spec, batch_size, loader_config
        self._fits = len(index) * spec.size**2 * 3 <= loader_config.cache_mib * 2**20
        self._cache: list[tuple[Tensor, Tensor]] = []
        self.bad = BadFiles(loader_config.on_bad)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images [B, 3, S, S] in channels_last memory format and labels int64 [B], on the device."""
        for pixels, labels in self._cache or self._read():
            yield normalise(pixels, self._spec), labels

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels uint8 [B, S, S, 3] and labels, from the files."""
        read: list[tuple[Tensor, Tensor]] = []
        positions = np.arange(len(self._index))
        stream = evaluation_batches(self._index, positions, self._spec, self._batch_size, self._loader_config, self.bad)
        for images, places in stream:
            batch = quantise(images, self._spec), torch.from_numpy(self._index.labels[places]).to(images.device)
            if self._fits:
                read.append(batch)
            yield batch
        self._cache = read  # only after a complete pass


def _module(loader_config: LoaderConfig, *, training: bool) -> ModuleType:
    if loader_config.backend(training=training) == "torchvision":
        return pil_loader
    # Imported where it is used, since it may not be installed.
    if training:
        from delt_hpc.data.dali import training as dali_training  # noqa: PLC0415

        return dali_training
    from delt_hpc.data.dali import evaluation as dali_evaluation  # noqa: PLC0415

    return dali_evaluation


def _threads(loader_config: LoaderConfig, *, training: bool) -> int:
    return (
        loader_config.workers
        if loader_config.backend(training=training) == "torchvision"
        else max(1, loader_config.workers)
    )


def _dali_package() -> str:
    """The installed build of DALI."""
    from importlib.metadata import packages_distributions  # noqa: PLC0415

    return next(name for name in packages_distributions()["nvidia"] if name.startswith("nvidia-dali"))
