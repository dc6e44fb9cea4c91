"""Which images of a class's ranking are taken, and in which order: the order decides the round an image enters."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from delt_hpc.keyed_random import Key, digest

TABLE = "selected.csv"
COLUMNS = ("class_index", "class", "number", "img_path", "score", "file")


def read(folder: Path) -> pd.DataFrame:
    """The table of selected/: one row an image, in class-map order."""
    texts = {"class": str, "img_path": str, "file": str}
    return pd.read_csv(folder / TABLE, dtype=texts, keep_default_na=False)


def choose(strategy: str, paths: Sequence[str], ipc: int, *key: Key) -> list[int]:
    """Places in a class's ranking (best score first), `ipc` of them.

    `top`: the easiest; `min`: the hardest, hardest first; `medium`: around the median, mid, mid+1, mid-1, mid+2, ...
    with mid = ceil(n / 2), leaving out what lies outside; `random`: by a hash of key and path, so that an image's luck
    depends on no other image.

    Args:
        paths: of the class's images, ranked.
        ipc: at most len(paths).
    """
    n = len(paths)
    if strategy == "top":
        return list(range(ipc))
    if strategy == "min":
        return list(range(n - 1, n - 1 - ipc, -1))
    if strategy == "random":
        return sorted(range(n), key=lambda place: digest(*key, paths[place]))[:ipc]
    mid = -(-n // 2)
    outwards = (place for step in range(n + 1) for place in ((mid + step, mid - step) if step else (mid,)))
    return [place for place in outwards if 0 <= place < n][:ipc]
