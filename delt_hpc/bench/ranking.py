"""`delt-hpc bench ranking`: how far rankings agree between backends and precisions, on real photographs."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from delt_hpc.bench import machine
from delt_hpc.bench.loading import backends
from delt_hpc.bench.photographs import CLASSES, write_photographs
from delt_hpc.config.schema import ScorePrecision
from delt_hpc.data.bad_files import BadFiles
from delt_hpc.data.catalog.specs import IMAGENET_MEAN, IMAGENET_STD, DatasetSpec
from delt_hpc.data.index import Index
from delt_hpc.data.loader import Backend, LoaderConfig, evaluation_batches
from delt_hpc.keyed_random import seeded
from delt_hpc.models.registry import build
from delt_hpc.ranking.score import scores
from delt_hpc.ranking.selection import choose
from delt_hpc.run.folder import write_csv

IPC, BATCH = 10, 32
SPEC = DatasetSpec("photographs", CLASSES, 32, 36, IMAGENET_MEAN, IMAGENET_STD, True, "convnet3")
PRECISIONS: tuple[ScorePrecision, ...] = ("float32", "bfloat16", "float16")
COLUMNS = ("backend", "precision", "spearman_mean", "spearman_min", "same_medium", "max_difference")


def bench(images: int, out: Path, precisions: Sequence[ScorePrecision] = PRECISIONS) -> pd.DataFrame:
    """Rank the same photographs with every backend and precision, and compare with PIL in float32.

    The teacher, a ConvNet-3, is trained on the photographs just long enough to be unsure. The first row shows what
    float32 rounding alone does: the same backend with another batch size. Also written to `ranking.csv` in `out`.

    Args:
        images: per class, of eight.
        precisions: of the teacher's forward pass.

    Returns:
        a row for each backend and precision: mean and least of Spearman's correlation within a class, share of the
        `IPC` medium images that are the same, largest difference of scores.
    """
    with tempfile.TemporaryDirectory() as folder:
        index = write_photographs(Path(folder), images)
        network = _teacher(index)
        expected = _scores(network, index, "torchvision", "float32", BATCH)
        rounding = _scores(network, index, "torchvision", "float32", 7)
        rows = [("float32 rounding", "float32", *_agreement(index, expected, rounding))]
        rows += [
            (backend, precision, *_agreement(index, expected, _scores(network, index, backend, precision, BATCH)))
            for backend in backends()
            for precision in precisions
            if (backend, precision) != ("torchvision", "float32")
        ]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).assign(images=images, ipc=IPC, **machine.record())
    write_csv(out / "ranking.csv", lambda file: table.to_csv(file, index=False))
    return table


def _batches(index: Index, backend: Backend, batch_size: int) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    loader_config = LoaderConfig(backend, torch.device("cuda" if backend == "dali-gpu" else "cpu"), 2)
    yield from evaluation_batches(index, np.arange(len(index)), SPEC, batch_size, loader_config, BadFiles())


def _teacher(index: Index) -> nn.Module:
    with seeded("bench", "ranking"):
        network = build(SPEC.teacher, SPEC.classes, SPEC.size)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.005, momentum=0.9)
    pixels = torch.cat([images for images, _ in _batches(index, "torchvision", BATCH)])
    labels = torch.from_numpy(index.labels)
    for i in range(len(index) // CLASSES):
        step = slice(i, None, len(index) // CLASSES)  # one image of each class
        loss = F.cross_entropy(network(pixels[step]), labels[step])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


def _scores(
    network: nn.Module, index: Index, backend: Backend, precision: ScorePrecision, batch_size: int
) -> np.ndarray:
    """In the order of the index; computed on a GPU where there is one."""
    device = machine.this_device()
    network = network.to(device).to(memory_format=torch.channels_last)
    found = np.empty(len(index))
    for images, positions in _batches(index, backend, batch_size):
        found[positions] = scores(network, images.to(device), index.labels[positions], precision)
    return found


def _agreement(index: Index, expected: np.ndarray, found: np.ndarray) -> tuple[float, float, float, float]:
    correlations, same = [], []
    for label in range(CLASSES):
        places = index.positions(label, label)
        one, other = pd.Series(expected[places]), pd.Series(found[places])
        correlations.append(float(one.rank().corr(other.rank())))
        medium = [_medium(scored, index, places) for scored in (one, other)]
        same.append(len(medium[0] & medium[1]) / IPC)
    return float(np.mean(correlations)), min(correlations), float(np.mean(same)), float(np.abs(expected - found).max())


def _medium(scored: "pd.Series[float]", index: Index, places: np.ndarray) -> set[str]:
    order = scored.sort_values(ascending=False, kind="stable").index
    paths = [index.paths[places[i]] for i in order]
    return {paths[place] for place in choose("medium", paths, IPC)}
