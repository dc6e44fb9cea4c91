"""Images a second of the evaluation transform: DALI and torchvision's decoder beside a DataLoader with PIL."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms.v2 import functional as tv

from delt_hpc.bench.machine import facts
from delt_hpc.data.bad_files import BadFiles
from delt_hpc.data.catalog.specs import SPECS, DatasetSpec
from delt_hpc.data.index import Index
from delt_hpc.data.loader import LoaderConfig, evaluation_batches, has_dali
from delt_hpc.data.random_crop import draw_window
from delt_hpc.data.transforms import decode, evaluation, normalise
from delt_hpc.errors import UserError
from delt_hpc.keyed_random import uniforms
from delt_hpc.report.drawing import chart
from delt_hpc.run.folder import write_csv, writing

BATCH = 64
ROUNDS = 3
WIDTH, HEIGHT, QUALITY = 500, 375, 95  # ImageNet's most frequent size; about its bytes a pixel
_SPEC = SPECS["imagenet-1k"]
_REFERENCE = "pil"

Load = Callable[[Index, int], Iterator[Tensor]]


def bench(threads: Sequence[int], images: int, out: Path) -> pd.DataFrame:
    """Measure every backend with every number of threads, and write `loading.csv` and `loading.png` to `out`.

    The backends take turns, so that a busy machine slows all of them; of several rounds the fastest counts. A backend's
    start is left out: the clock runs from the first batch on.

    Args:
        threads: worker processes of a DataLoader, and threads of DALI.
        images: how many JPEGs to read, two batches at least.

    Raises:
        UserError: too few images.

    Returns:
        one row for each backend and number of threads, with the columns of the CSV: ratio to PIL with as many workers,
        backend, threads, images_per_s, and what it was measured with.
    """
    if images < 2 * BATCH:
        raise UserError(f"{images} are too few to measure", where="images", expected=f"at least {2 * BATCH}")
    rates: dict[tuple[str, int], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        index = write_photographs(Path(folder), images)
        for _ in range(ROUNDS):
            for count in threads:
                for name, load in backends().items():
                    rates[name, count] = max(rates.get((name, count), 0.0), _rate(load(index, count)))
    table = _table(rates, images)
    write_csv(out / "loading.csv", lambda file: table.to_csv(file, index=False))
    with writing(out / "loading.png") as file:
        file.write(chart("loading", "Images read a second", "", partial(_draw, table)).png)
    return table


def write_photographs(root: Path, count: int) -> Index:
    """JPEGs of 500 x 375 pixels, cut at random places out of the photographs that scikit-learn ships."""
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    names = [f"{number:05d}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        photograph = photographs[number % len(photographs)]
        window = draw_window(uniforms("bench", number), photograph.height, photograph.width, (0.5, 1.0))
        box = (window.left, window.top, window.left + window.width, window.top + window.height)
        photograph.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box).save(root / name, quality=QUALITY)
    return Index(root, tuple(names), np.zeros(count, dtype=np.int64))


def backends() -> dict[str, Load]:
    """Every way to read an index's images: normalised float32 [B, 3, S, S] from so many threads or workers."""
    found: dict[str, Load] = {
        _REFERENCE: partial(_data_loader, _Pil),
        "torchvision": partial(_data_loader, _Torchvision),
    }
    if has_dali():
        found["dali-cpu"] = partial(_dali, torch.device("cpu"))
        if torch.cuda.is_available():
            found["dali-gpu"] = partial(_dali, torch.device("cuda"))
    return found


class _Files(Dataset[Tensor]):
    """Evaluation images of files, uint8 [S, S, 3]."""

    def __init__(self, index: Index, spec: DatasetSpec) -> None:
        self._index, self._spec = index, spec

    def __len__(self) -> int:
        return len(self._index)

    def _path(self, position: int) -> Path:
        return self._index.root / self._index.paths[position]


class _Pil(_Files):
    def __getitem__(self, position: int) -> Tensor:
        return torch.from_numpy(evaluation(self._spec)(decode(self._path(position))).copy())


class _Torchvision(_Files):
    def __getitem__(self, position: int) -> Tensor:
        image = decode_jpeg(read_file(str(self._path(position))), mode=ImageReadMode.RGB)
        resized = tv.resize(image, [self._spec.resize], antialias=True)
        cut: Tensor = tv.center_crop(resized, [self._spec.size, self._spec.size])
        return cut.permute(1, 2, 0)


def _data_loader(kind: type[_Files], index: Index, workers: int) -> Iterator[Tensor]:
    for pixels in DataLoader(kind(index, _SPEC), batch_size=BATCH, num_workers=workers):
        yield normalise(pixels, _SPEC)


def _dali(device: torch.device, index: Index, threads: int) -> Iterator[Tensor]:
    everything = np.arange(len(index))
    loader_config = LoaderConfig("dali-gpu" if device.type == "cuda" else "dali-cpu", device, threads)
    for images, _ in evaluation_batches(index, everything, _SPEC, BATCH, loader_config, BadFiles()):
        yield images


def _rate(batches: Iterator[Tensor]) -> float:
    """Images a second after the first batch."""
    first = next(batches)
    _wait_for(first)
    start, images = time.perf_counter(), 0
    for batch in batches:
        images += len(batch)
    _wait_for(batch)
    return images / (time.perf_counter() - start)


def _wait_for(batch: Tensor) -> None:
    if batch.is_cuda:
        torch.cuda.synchronize(batch.device)


def _table(rates: dict[tuple[str, int], float], images: int) -> pd.DataFrame:
    rows = [
        {
            "ratio": round(rate / rates[_REFERENCE, count], 3),
            "backend": name,
            "threads": count,
            "images_per_s": round(rate, 1),
        }
        for (name, count), rate in rates.items()
    ]
    return pd.DataFrame(rows).assign(images=images, batch_size=BATCH, rounds=ROUNDS, **facts())


def _draw(table: pd.DataFrame, axes: Axes) -> None:
    for name, rows in table.groupby("backend", sort=False):
        axes.plot(rows["threads"], rows["images_per_s"], marker="o", label=str(name))
    axes.set_xticks(sorted(set(table["threads"])))
    axes.set_xlabel("threads or workers")
    axes.set_ylabel("images/s")
    axes.set_ylim(bottom=0)
    axes.legend()
