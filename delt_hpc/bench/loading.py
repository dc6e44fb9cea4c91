"""`delt-hpc bench loading`: images per second that each backend reads, and that ranking scores."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.utils.benchmark import timer  # waits for the device, then reads the clock
from torch.utils.data import DataLoader, Dataset

from delt_hpc.bench import machine
from delt_hpc.bench.photographs import CLASSES, write_photographs
from delt_hpc.data.bad_files import BadFiles
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.data.index import Index
from delt_hpc.data.loader import Backend, LoaderConfig, evaluation_batches, has_dali
from delt_hpc.data.transforms import decode, evaluation, normalise
from delt_hpc.errors import UserError
from delt_hpc.keyed_random import seeded
from delt_hpc.models.registry import build
from delt_hpc.ranking.score import scores
from delt_hpc.report.drawing import chart
from delt_hpc.run.folder import write_csv, writing

BATCH, ROUNDS = 64, 3
SPEC = SPECS["imagenet-1k"]
BASELINE: Backend = "torchvision"

Batches = Iterator[tuple[Tensor, np.ndarray]]


def bench(threads: Sequence[int], images: int, network: str | None, out: Path) -> pd.DataFrame:
    """Measure every backend with every number of threads, and write `loading.csv` and `loading.png` to `out`.

    The backends take turns, so that a busy machine slows down all of them. The first batch of each is not timed.

    Args:
        threads: worker processes of PIL, threads of DALI.
        images: JPEGs to read, at least two batches.
        network: score the images as well, as the stage `rank` does, by this network with random weights.

    Returns:
        one row for each backend and number of threads. `ratio`: to PIL with as many workers; `images_per_s`: median of
        several rounds; `spread`: fastest minus slowest round over the median.

    Raises:
        UserError: too few images.
    """
    if images < 2 * BATCH:
        raise UserError(f"{images} images are too few", where="--images", expected=f"at least {2 * BATCH}")
    score = _scorer(network) if network else None
    rates: dict[tuple[Backend, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        index = write_photographs(Path(folder), -(-images // CLASSES))
        for _ in range(ROUNDS):
            for count in threads:
                for backend in backends():
                    rates.setdefault((backend, count), []).append(_rate(_batches(index, backend, count), index, score))
    rows = [
        {
            "ratio": median(found) / median(rates[BASELINE, count]),
            "backend": backend,
            "threads": count,
            "images_per_s": median(found),
            "spread": (max(found) - min(found)) / median(found),
        }
        for (backend, count), found in rates.items()
    ]
    facts: dict[str, object] = {"network": network or "", "size": SPEC.size, "images": images, "repeats": ROUNDS}
    table = pd.DataFrame([row | facts | machine.record() for row in rows])
    write_csv(out / "loading.csv", lambda file: table.to_csv(file, index=False, float_format="%.4g"))
    with writing(out / "loading.png") as file:
        file.write(chart("loading", "Images per second", "", partial(_draw, table)).png)
    return table


def backends() -> list[Backend]:
    """Those of this machine."""
    if not has_dali():
        return ["torchvision"]
    return ["torchvision", "dali-cpu", *(["dali-gpu"] if torch.cuda.is_available() else [])]  # type: ignore[list-item]


class _Images(Dataset[Tensor]):
    """Evaluation images by PIL, uint8 [S, S, 3]. The package's own loader starts workers for many images only."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, position: int) -> Tensor:
        return torch.from_numpy(evaluation(SPEC)(decode(self._index.root / self._index.paths[position])).copy())


def _batches(index: Index, backend: Backend, threads: int) -> Batches:
    """Normalised images float32 [B, 3, S, S], and their positions in the index."""
    positions = np.arange(len(index))
    if backend == "torchvision":
        loader = DataLoader(_Images(index), batch_size=BATCH, num_workers=threads)
        return ((normalise(pixels, SPEC), positions[i * BATCH :][:BATCH]) for i, pixels in enumerate(loader))
    device = torch.device("cuda" if backend == "dali-gpu" else "cpu")
    return evaluation_batches(index, positions, SPEC, BATCH, LoaderConfig(backend, device, threads), BadFiles())


def _scorer(name: str) -> Callable[[Tensor, np.ndarray], object]:
    device = machine.this_device()
    with seeded("bench", "loading"):
        network = build(name, SPEC.classes, SPEC.size).eval().requires_grad_(False)
    network = network.to(device).to(memory_format=torch.channels_last)
    return lambda images, labels: scores(network, images.to(device, non_blocking=True), labels, "auto")


def _rate(batches: Batches, index: Index, score: Callable[[Tensor, np.ndarray], object] | None) -> float:
    """Images per second after the first batch."""
    began, images = 0.0, 0
    for i, (pixels, positions) in enumerate(batches):
        if score:
            score(pixels, index.labels[positions])
        if i == 0:
            began = timer()
        else:
            images += len(pixels)
    return images / (timer() - began)


def _draw(table: pd.DataFrame, axes: Axes) -> None:
    for name, rows in table.groupby("backend", sort=False):
        axes.plot(rows["threads"], rows["images_per_s"], marker="o", label=str(name))
    axes.set_xticks(sorted(set(table["threads"])))
    axes.set_xlabel("threads or workers")
    axes.set_ylabel("images/s")
    axes.set_ylim(bottom=0)
    axes.legend()
