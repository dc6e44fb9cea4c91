"""A small index of images, and batches of it from `TrainingSet`."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from delt_hpc.config.schema import Loader, OnBad
from delt_hpc.data import loader
from delt_hpc.data.catalog.specs import SPECS, DatasetSpec
from delt_hpc.data.index import Index, scan
from delt_hpc.data.loader import LoaderConfig, TrainingSet
from delt_hpc.data.transforms import Augmentation, decode, evaluation, normalise

SPEC: DatasetSpec = replace(SPECS["fashion-mnist"], size=8, resize=9)
CPU = torch.device("cpu")
COUNT = 23
BACKENDS = ["torchvision", pytest.param("dali-cpu", marks=pytest.mark.skipif(not loader.has_dali(), reason="no DALI"))]
Batches = list[tuple[torch.Tensor, torch.Tensor]]


def one_image_a_class(root: Path, image_folder: Callable[..., Path]) -> Index:
    """23 images in 23 classes, so that a label identifies an image."""
    folders = [f"{number:02d}" for number in range(COUNT)]
    return scan(image_folder(root, dict.fromkeys(folders, 1), size=(14, 11)), folders)


def loader_config(
    workers: int = 0, cache_mib: int = 0, backend: Loader = "torchvision", on_bad: OnBad = "raise"
) -> LoaderConfig:
    return LoaderConfig(backend, CPU, workers, cache_mib, on_bad)


def reference_images(index: Index, positions: list[int]) -> torch.Tensor:
    pixels = [evaluation(SPEC)(decode(index.root / index.paths[position])) for position in positions]
    return normalise(torch.from_numpy(np.stack(pixels)), SPEC)


def training_set(index: Index, batch_size: int = 5, count: int | None = None, **options: Any) -> TrainingSet:
    settings = {name: options.pop(name) for name in ("workers", "cache_mib", "backend", "on_bad") if name in options}
    defaults: dict[str, Any] = {"key": (0, "test"), "augmentation": Augmentation((0.5, 1.0))}
    positions = np.arange(count or len(index))
    return TrainingSet(
        index, positions, SPEC, batch_size=batch_size, loader_config=loader_config(**settings), **defaults | options
    )


def epochs(data: TrainingSet, first: int, last: int) -> Iterator[Batches]:
    for _, batches in groupby(data.batches(first, last), key=lambda batch: batch.epoch):
        yield [(batch.images, data.labels(batch)) for batch in batches]


def read(data: TrainingSet, first: int, last: int) -> list[Batches]:
    return list(epochs(data, first, last))


def orders(epochs: list[Batches]) -> list[list[int]]:
    return [torch.cat([labels for _, labels in batches]).tolist() for batches in epochs]


def delete_files(index: Index) -> None:
    for path in index.paths:
        (index.root / path).unlink()
