"""How far rankings agree between backends and precisions, on real photographs."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from delt_hpc.bench.machine import facts
from delt_hpc.config.schema import ScorePrecision
from delt_hpc.data.bad_files import BadFiles
from delt_hpc.data.catalog.specs import IMAGENET_MEAN, IMAGENET_STD, DatasetSpec
from delt_hpc.data.index import Index, scan
from delt_hpc.data.loader import Backend, LoaderConfig, evaluation_batches, has_dali
from delt_hpc.data.random_crop import draw_window
from delt_hpc.keyed_random import seeded, uniforms
from delt_hpc.models.registry import build
from delt_hpc.ranking.score import scores
from delt_hpc.ranking.selection import choose
from delt_hpc.run.folder import write_csv

IPC, EPOCHS, BATCH = 10, 1, 32
SPEC = DatasetSpec("photographs", 8, 32, 36, IMAGENET_MEAN, IMAGENET_STD, True, "convnet3")
PRECISIONS: tuple[ScorePrecision, ...] = ("float32", "bfloat16", "float16")
_CPU = torch.device("cpu")


def bench(images: int, out: Path, precisions: Sequence[ScorePrecision] = PRECISIONS) -> pd.DataFrame:
    """Rank the same photographs every way there is, and compare with PIL in float32; also written to `ranking.csv`.

    Eight classes are the quarters of scikit-learn's two photographs, their images windows of these at 500 x 375 pixels;
    the teacher, a ConvNet-3, is trained on them just long enough to be unsure. The first row tells what float noise
    alone does: the same in other batches.

    Args:
        images: per class.
        precisions: of the teacher's forward pass, each tried with every backend.

    Returns:
        a row a way: backend, precision, Spearman's correlation within classes (mean and least), share of the medium
        `IPC` images that are the same, largest difference of scores, and what it was measured with.
    """
    with tempfile.TemporaryDirectory() as folder:
        index = write_quarters(Path(folder), images)
        network = _teacher(index)
        due = _ranked(network, index, "torchvision", "float32", BATCH)
        rows = [
            ("float noise", "float32", *_agreement(index, due, _ranked(network, index, "torchvision", "float32", 7)))
        ]
        rows += [
            (backend, precision, *_agreement(index, due, _ranked(network, index, backend, precision, BATCH)))
            for backend in _backends()
            for precision in precisions
            if (backend, precision) != ("torchvision", "float32")
        ]
    columns = ["backend", "precision", "spearman_mean", "spearman_min", "same_medium", "max_difference"]
    table = pd.DataFrame(rows, columns=columns).assign(images=images, ipc=IPC, **facts())
    write_csv(out / "ranking.csv", lambda file: table.to_csv(file, index=False))
    return table


def write_quarters(root: Path, images: int) -> Index:
    """Eight classes of JPEGs: windows of the quarters of two photographs."""
    names = []
    for number, pixels in enumerate(load_sample_images().images):
        height, width = (length // 2 for length in pixels.shape[:2])
        for quarter, (top, left) in enumerate([(0, 0), (0, width), (height, 0), (height, width)]):
            name = f"{number}-{quarter}"
            names.append(name)
            (root / name).mkdir(parents=True)
            part = Image.fromarray(pixels[top : top + height, left : left + width])
            for each in range(images):
                window = draw_window(uniforms("bench", name, each), height, width, (0.2, 1.0))
                box = (window.left, window.top, window.left + window.width, window.top + window.height)
                part.resize((500, 375), Image.Resampling.BICUBIC, box).save(root / name / f"{each:05d}.jpg", quality=90)
    return scan(root, names)


def _backends() -> list[Backend]:
    found: list[Backend] = ["torchvision"]
    if has_dali():
        found.append("dali-cpu")
        found += ["dali-gpu"] if torch.cuda.is_available() else []
    return found


def _batches(index: Index, backend: Backend, batch_size: int) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    device = torch.device("cuda") if backend == "dali-gpu" else _CPU
    everything = np.arange(len(index))
    yield from evaluation_batches(index, everything, SPEC, batch_size, LoaderConfig(backend, device, 2), BadFiles())


def _teacher(index: Index) -> nn.Module:
    with seeded("bench", "ranking"):
        network = build(SPEC.teacher, SPEC.classes, SPEC.size)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.005, momentum=0.9)
    batches = list(_batches(index, "torchvision", BATCH))
    for epoch in range(EPOCHS):
        for step in range(len(batches)):
            # One image of each batch, so that a step sees all classes.
            rows = [(step * 7 + epoch + i) % len(images) for i, (images, _) in enumerate(batches)]
            pixels = torch.stack([images[row] for row, (images, _) in zip(rows, batches, strict=True)])
            places = [positions[row] for row, (_, positions) in zip(rows, batches, strict=True)]
            loss = F.cross_entropy(network(pixels), torch.from_numpy(index.labels[places]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


def _ranked(
    network: nn.Module, index: Index, backend: Backend, precision: ScorePrecision, batch_size: int
) -> np.ndarray:
    """Scores in the order of the index; the network works on a GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device).to(memory_format=torch.channels_last)
    found = np.empty(len(index))
    for images, positions in _batches(index, backend, batch_size):
        found[positions] = scores(network, images.to(device), index.labels[positions], precision)
    return found


def _agreement(index: Index, due: np.ndarray, found: np.ndarray) -> tuple[float, float, float, float]:
    correlations, sample_weights = [], []
    for label in range(SPEC.classes):
        places = index.positions(label, label)
        one, other = pd.Series(due[places]), pd.Series(found[places])
        correlations.append(float(one.rank().corr(other.rank())))
        medium = [_medium(series, index, places) for series in (one, other)]
        sample_weights.append(len(medium[0] & medium[1]) / IPC)
    return (
        float(np.mean(correlations)),
        min(correlations),
        float(np.mean(sample_weights)),
        float(np.abs(due - found).max()),
    )


def _medium(scored: "pd.Series[float]", index: Index, places: np.ndarray) -> set[str]:
    order = scored.sort_values(ascending=False, kind="stable").index
    paths = [index.paths[places[i]] for i in order]
    return {paths[place] for place in choose("medium", paths, IPC)}
