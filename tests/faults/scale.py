"""Seconds and memory of the stages that handle lists of files, on hard links: python tests/faults/scale.py [FILES ...]

The links stand for images of 1000 classes. Each step runs in a process of its own. The default numbers of files are
those of a quarter of ImageNet-1K and of all of it, to see whether the time grows with the number.
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from delt_hpc.config.load import parse_config
from delt_hpc.config.schema import Config, Stage
from delt_hpc.pipeline import open_run, run_stages
from delt_hpc.run.progress import Reporter

CLASSES, IPC = 1000, 1
FILES = (320_000, 1_300_000)


def make_links(root: Path, files: int) -> pd.DataFrame:
    """Train and validation folders; a ranking of the training images."""
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    names: list[str] = []
    for label in range(CLASSES):
        for split, count in (("train", files // CLASSES), ("val", 1)):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            first = folder / "n_0.png"  # a file of its own: a file system allows only some 65,000 links to one
            Image.fromarray(image).save(first)
            for number in range(1, count):
                os.link(first, f"{folder}/n_{number}.png")
            if split == "train":
                names += [f"{folder.name}/n_{number}.png" for number in range(count)]
    scores = np.random.default_rng(1).random(len(names))
    return pd.DataFrame({"score": scores, "img_path": names, "class": [name.partition("/")[0] for name in names]})


def configuration(root: Path) -> Config:
    tree: dict[str, Any] = {
        "data": {"name": "links", "root": str(root / "images"), "size": 8, "mean": [0.5] * 3, "std": [0.25] * 3},
        "rank": {"csv": str(root / "ranking.csv")},
        "select": {"ipc": IPC},
        "machine": {"device": "cpu", "loader": "torchvision"},
    }
    return parse_config(tree, "scale")


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the work in a child process, and by how many MiB its memory grows at most."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        work()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os.write(writer, f"{time.perf_counter() - began} {grown / 1024}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        seconds, mib = map(float, file.read().split())
    os.waitpid(child, 0)
    return seconds, mib


def measure(files: int) -> dict[str, tuple[float, float]]:
    with tempfile.TemporaryDirectory(prefix="scale-") as name:
        root = Path(name)
        began = time.perf_counter()
        make_links(root / "images", files).to_csv(root / "ranking.csv", index=False)
        print(f"{files} files made in {time.perf_counter() - began:.1f} s", flush=True)
        config = configuration(root)

        def run(*stages: Stage) -> Callable[[], object]:
            return lambda: run_stages(open_run(config, root / "run", Reporter(quiet=True)), stages)

        return {
            "first scan": measured(run()),
            "open again": measured(run()),
            "rank (given)": measured(run("rank")),
            f"select ({IPC} a class)": measured(run("select")),
        }


def main() -> None:
    print("| files | step | seconds | MiB |\n| ---: | --- | ---: | ---: |")
    for files in [int(text) for text in sys.argv[1:]] or FILES:
        for step, (seconds, mib) in measure(files).items():
            print(f"| {files:,} | {step} | {seconds:.1f} | {mib:.0f} |", flush=True)


if __name__ == "__main__":
    main()
