"""Files ranked per second: reading, decoding and scoring together, by the default settings and by plain ones.

`plain` is what a run without any of the fast paths does: DALI reads the files where it is installed, the network
computes in float32 and NCHW with all its BatchNorm layers, and the allocator returns freed memory to the kernel.
"""

import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from delt_hpc.bench import machine
from delt_hpc.bench.stages.scoring import plain_scores
from delt_hpc.config.schema import Rank, ScorePrecision
from delt_hpc.data.bad_files import BadFiles
from delt_hpc.data.catalog import idx
from delt_hpc.data.catalog.sources import DEBIAN
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.data.index import scan
from delt_hpc.data.loader import LoaderConfig, evaluation_batches
from delt_hpc.keyed_random import generator, seeded
from delt_hpc.models.folding import fold_batch_norms
from delt_hpc.models.registry import build
from delt_hpc.ranking.score import scores
from delt_hpc.run.allocator import keep_freed_memory
from delt_hpc.run.folder import write_csv
from delt_hpc.training.precision import name_of, scoring_dtype

SPEC = SPECS["fashion-mnist"]
SIDE = 28  # pixels of a file's image
ROUNDS = 3
FILE = "ranking-speed.csv"
COLUMNS = ("ratio", "settings", "loader", "precision", "files_per_s", "spread")

Settings = Literal["default", "float32", "plain"]
SETTINGS: tuple[Settings, ...] = ("default", "float32", "plain")


def bench(files: int, out: Path) -> pd.DataFrame:
    """Rank the same files with all settings, and write `ranking-speed.csv` to `out`.

    The files are the first ones of Fashion-MNIST if Debian's package is installed, else small windows of photographs;
    the network is a ConvNet-3 with random weights. Each setting has a process of its own, and they take turns.

    Returns:
        a row for each setting: files per second, the median of `ROUNDS`; `ratio`: to that of `plain`.
    """
    rates: dict[Settings, list[float]] = {settings: [] for settings in SETTINGS}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        write_files(Path(folder), files)
        context, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
        processes = {
            settings: stack.enter_context(ProcessPoolExecutor(1, context, _start, (settings, threads)))
            for settings in SETTINGS
        }
        for i in range(1 + ROUNDS):
            for settings, process in processes.items():
                rate = process.submit(rank_files, Path(folder), settings).result()
                if i:  # the first round warms up
                    rates[settings].append(rate)
    table = pd.DataFrame([_row(settings, found, rates["plain"]) for settings, found in rates.items()])
    table = table.assign(files=files, repeats=ROUNDS, **machine.record())
    write_csv(out / FILE, lambda file: table.to_csv(file, index=False, float_format="%.4g"))
    return table


def write_files(root: Path, count: int) -> None:
    """Gray PNG files of 28 x 28 pixels, in one folder for each class."""
    if idx.missing(DEBIAN):
        photographs = [np.asarray(Image.fromarray(pixels).convert("L")) for pixels in load_sample_images().images]
        corners = torch.randint(0, min(photographs[0].shape) - SIDE, (count, 2), generator=generator("bench", "files"))
        images = [
            photographs[i % len(photographs)][top : top + SIDE, left : left + SIDE]
            for i, (top, left) in enumerate(corners.tolist())
        ]
        labels = np.arange(count) % SPEC.classes
    else:
        pixels, labels = idx.read_split(DEBIAN, "train", SPEC.classes)
        images = list(pixels)
    for i, (image, label) in enumerate(zip(images[:count], labels[:count].tolist(), strict=True)):
        (root / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / str(label) / f"{i:05d}.png")


def rank_files(root: Path, settings: Settings) -> float:
    """Files per second."""
    device, index = machine.this_device(), scan(root, sorted(path.name for path in root.iterdir()))
    precision, plain = precision_of(settings), settings == "plain"
    loader_config = _loader_config(plain=plain)
    with seeded("bench", "ranking"):
        network = build(SPEC.teacher, SPEC.classes, SPEC.size).eval().requires_grad_(False).to(device)
    if not plain:
        network = fold_batch_norms(network).to(memory_format=torch.channels_last)
    positions, batch_size = np.arange(len(index)), Rank().batch_size
    began = time.perf_counter()
    for images, places in evaluation_batches(index, positions, SPEC, batch_size, loader_config, BadFiles()):
        if plain:
            plain_scores(network, images.contiguous(), index.labels[places])
        else:
            scores(network, images, index.labels[places], precision)
    return len(index) / (time.perf_counter() - began)


def _start(settings: Settings, threads: int) -> None:
    """Of a process: glibc's settings cannot be taken back.

    Its image-reading processes are started as those of a run; otherwise they would be spawned, as it was itself.
    """
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    torch.set_num_threads(threads)
    if settings != "plain" and machine.this_device().type == "cpu":
        keep_freed_memory()


def precision_of(settings: Settings) -> ScorePrecision:
    return "auto" if settings == "default" else "float32"


def _row(settings: Settings, rates: list[float], plain: list[float]) -> dict[str, object]:
    device = machine.this_device()
    return {
        "ratio": median(rates) / median(plain),
        "settings": settings,
        "loader": _loader_config(plain=settings == "plain").backend(training=False),
        "precision": name_of(scoring_dtype(precision_of(settings), device)),
        "files_per_s": median(rates),
        "spread": (max(rates) - min(rates)) / median(rates),
    }


def _loader_config(*, plain: bool) -> LoaderConfig:
    """The plain settings read the files as if they were JPEGs."""
    return LoaderConfig("auto", machine.this_device(), min(8, len(os.sched_getaffinity(0))), jpegs=plain)
