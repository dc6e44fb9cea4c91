"""Selection of images from a class's ranking. Their order matters: it decides the round in which an image enters."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from delt_hpc.config.schema import Config
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.keyed_random import Key, digest

TABLE = "selected.csv"
COLUMNS = ("class_index", "class", "number", "img_path", "score", "file")


def read(folder: Path) -> pd.DataFrame:
    """Read the table of selected/: one row an image, in class-map order.

    `img_path` of a mosaic is the paths of its images with `manifest.SEPARATOR` between them.
    """
    texts = {"class": str, "img_path": str, "file": str}
    return pd.read_csv(folder / TABLE, dtype=texts, keep_default_na=False)


def spec_of(config: Config, spec: DatasetSpec) -> DatasetSpec:
    """How selected images become network input: mosaics have its size already, so they are not resized and cropped."""
    return replace(spec, resize=spec.size) if config.rank.candidates == "crops" else spec


def choose(strategy: str, paths: Sequence[str], ipc: int, *key: Key) -> list[int]:
    """Indices of `ipc` images in a class's ranking (best score first).

    `top`: the easiest, easiest first. `min`: the hardest, hardest first. `medium`: around the median, in the order mid,
    mid+1, mid-1, mid+2, ... with mid = ceil(n / 2), without indices outside 0..n-1. `random`: ordered by a hash of key
    and path, so that an image's place in the order does not depend on the other images.

    Args:
        paths: paths of the class's images in ranking order.
        ipc: at most len(paths).
    """
    n = len(paths)
    if strategy == "top":
        return list(range(ipc))
    if strategy == "min":
        return list(range(n - 1, n - 1 - ipc, -1))
    if strategy == "random":
        return sorted(range(n), key=lambda i: digest(*key, paths[i]))[:ipc]
    mid = -(-n // 2)
    outwards = (i for step in range(n + 1) for i in ((mid + step, mid - step) if step else (mid,)))
    return [i for i in outwards if 0 <= i < n][:ipc]
