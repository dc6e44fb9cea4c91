"""Batches of images from one of three backends, with the positions of the images in an index.

`torchvision` (PIL) is the reference. `dali-cpu` and `dali-gpu` make the same random draws, and their pixels differ from
the reference by at most 1/255. The backend is recorded with every result.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions, version
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
from delt_hpc.data.crops import Crops
from delt_hpc.data.epochs import TrainingBatch, steps
from delt_hpc.data.index import Index
from delt_hpc.data.transforms import Augmentation, normalise, quantise
from delt_hpc.errors import UserError
from delt_hpc.keyed_random import Key

Backend = Literal["dali-gpu", "dali-cpu", "torchvision"]


@dataclass(frozen=True)
class LoaderConfig:
    """Settings of image loading.

    Attributes:
        loader: the backend, or `auto`.
        device: the device on which batches are delivered.
        workers: number of DALI threads, or of worker processes of the PIL loader; 0 loads in this process.
        cache_mib: memory for decoded images, MiB.
        on_bad: whether an unreadable file is an error or is skipped.
        jpegs: whether most of the run's images are JPEG files, the only ones that DALI decodes itself.
    """

    loader: Loader
    device: torch.device
    workers: int = 0
    cache_mib: int = 0
    on_bad: OnBad = "raise"
    jpegs: bool = True

    def backend(self, *, training: bool) -> Backend:
        """The backend of the training or the evaluation transform.

        `auto` is whichever is faster: DALI on a GPU; on a CPU DALI for the evaluation transform of JPEG files, and PIL
        for other files and for the training transform. Without DALI it is PIL.
        """
        if self.loader != "auto":
            return self.loader
        if not has_dali():
            return "torchvision"
        if self.device.type == "cuda":
            return "dali-gpu"
        return "dali-cpu" if self.jpegs and not training else "torchvision"

    def facts(self, *, training: bool) -> dict[str, str]:
        """What is recorded with results: the backend, and the versions of the packages that decode images."""
        backend = self.backend(training=training)
        packages = ("pillow", "torchvision") if backend == "torchvision" else (_dali_package(), "pillow")
        return {"loader": backend} | {f"loader.{name}": version(name) for name in packages}


def check(loader: Loader, device: torch.device) -> None:
    """Check that the backend is available.

    Raises:
        UserError: DALI is not installed, or its backend does not match the device.
    """
    if loader.startswith("dali") and not has_dali():
        raise UserError(
            "DALI is not installed",
            where=f"machine.loader: {loader}",
            remedy="install nvidia-dali-cuda130, or set machine.loader=torchvision",
        )
    if loader == "dali-gpu" and device.type != "cuda":
        raise UserError(
            "requires a GPU; this run is on the CPU",
            where="machine.loader: dali-gpu",
            expected="auto, dali-cpu or torchvision",
        )
    if loader == "dali-cpu" and device.type == "cuda":
        raise UserError(
            "loads images for the CPU; this run is on a GPU",
            where="machine.loader: dali-cpu",
            expected="auto, dali-gpu or torchvision",
        )


def has_dali() -> bool:
    return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None


def mostly_jpegs(index: Index) -> bool:
    """Whether the names of at least half of the files are those of JPEG files."""
    return 2 * sum(path.lower().endswith((".jpg", ".jpeg")) for path in index.paths) >= len(index)


def images(root: Path, paths: Sequence[str], spec: DatasetSpec, batch_size: int) -> Iterator[Tensor]:
    """A few files through the reference backend, in order: normalised float32 [<= batch_size, 3, S, S] on the CPU.

    Raises:
        UserError: naming every unreadable file of the first batch that has one.
    """
    index = Index(root, tuple(paths), np.zeros(len(paths), dtype=np.int64))
    loader_config = LoaderConfig("torchvision", torch.device("cpu"))
    for batch, _ in evaluation_batches(index, np.arange(len(paths)), spec, batch_size, loader_config, BadFiles()):
        yield batch.contiguous()


def evaluation_batches(
    index: Index,
    positions: np.ndarray,
    spec: DatasetSpec,
    batch_size: int,
    loader_config: LoaderConfig,
    bad: BadFiles,
    *,
    by_class: bool = False,
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """The images at the positions, in order, under the evaluation transform: resize and centre crop.

    Args:
        positions: int64 [n], positions in the index.
        bad: collects unreadable files.
        by_class: no batch has images of two classes, so that batches do not depend on which classes are read.

    Yields:
        Normalised images float32 [B, 3, S, S] on the device, and their positions int64 [B]. The last batch may be
        smaller, and so is a batch with skipped files.

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
        by_class=by_class,
    )
    return batches


def crop_batches(
    index: Index,
    positions: np.ndarray,
    spec: DatasetSpec,
    batch_size: int,
    crops: Crops,
    loader_config: LoaderConfig,
    bad: BadFiles,
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Random crops of the images at the positions, in order; each image is read and decoded once.

    No batch has images of two classes, so that batches do not depend on which classes are read.

    Args:
        positions: int64 [n], positions in the index.
        batch_size: images of a batch, each with `crops.number` crops.
        bad: collects unreadable files.

    Yields:
        Normalised crops float32 [B, crops.number, 3, crops.side, crops.side] on the device, and the positions of their
        images int64 [B]. The last batch may be smaller, and so is a batch with skipped files.

    Raises:
        UserError: naming unreadable files, unless they are skipped.
    """
    batches: Iterator[tuple[Tensor, np.ndarray]] = _module(loader_config, training=False).crop_batches(
        index,
        positions,
        spec,
        batch_size,
        crops,
        device=loader_config.device,
        threads=_threads(loader_config, training=False),
        bad=bad,
    )
    return batches


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Images of an index under random augmentation, reshuffled in every epoch.

    Every random draw is a function of (key, epoch, position). So batches do not depend on workers, caching or restarts,
    and those of different backends differ by at most 1/255 a pixel.

    Attributes:
        epochs_kept: epochs with draws of their own, which the later ones repeat; None: all.
    """

    index: Index
    positions: np.ndarray
    spec: DatasetSpec
    augmentation: Augmentation
    batch_size: int
    key: tuple[Key, ...]
    loader_config: LoaderConfig
    epochs_kept: int | None = field(default=None, kw_only=True)
    bad: BadFiles = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bad", BadFiles(self.loader_config.on_bad))

    def batches(self, first: int, last: int, first_step: int = 0) -> Generator[TrainingBatch]:
        """The batches of epochs first..last-1. Loading pauses only where the kept epochs begin again.

        The first epoch begins at its batch `first_step`. Close the generator to end worker processes. How an epoch is
        divided into batches is described at `epochs.shuffled_batches`.
        """
        while first < last:
            start = self.drawn(first)
            stop = min(start + last - first, self.epochs_kept or last)
            with closing(self._drawn(range(start, stop), first_step)) as batches:
                for batch in batches:
                    yield batch._replace(epoch=batch.epoch + first - start)
            first, first_step = first + stop - start, 0

    def _drawn(self, epochs: range, first_step: int) -> Generator[TrainingBatch]:
        loader_config = self.loader_config
        batches: Generator[TrainingBatch] = _module(loader_config, training=True).training_batches(
            self.index,
            self.positions,
            self.spec,
            self.batch_size,
            epochs,
            first_step,
            augmentation=self.augmentation,
            key=self.key,
            device=loader_config.device,
            threads=_threads(loader_config, training=True),
            bad=self.bad,
            cache_mib=loader_config.cache_mib,
        )
        return batches

    def drawn(self, epoch: int) -> int:
        """The epoch whose random draws this one uses: itself, or the kept one that it repeats."""
        return epoch % self.epochs_kept if self.epochs_kept else epoch

    def steps(self) -> int:
        """Number of batches in an epoch, if no file is unreadable."""
        return steps(len(self.positions), self.batch_size)

    def labels(self, batch: TrainingBatch) -> Tensor:
        """Class indices of a batch, int64 [B], on its device."""
        return torch.from_numpy(self.index.labels[batch.positions]).to(batch.images.device, non_blocking=True)


class ValidationSet:
    """All images of an index under the evaluation transform, cached on the device as uint8 if they fit.

    Cached images are normalised again in every pass, which takes a quarter of the memory of float32 images.

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
    # Imported here because DALI may not be installed.
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
    """The name of the installed DALI package, e.g. nvidia-dali-cuda130."""
    return next(name for name in packages_distributions()["nvidia"] if name.startswith("nvidia-dali"))
