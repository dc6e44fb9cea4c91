"""The ranking: score of every training image, a table in class-map order, best first. Paths and classes stay texts."""

from pathlib import Path

import numpy as np
import pandas as pd

from delt_hpc.data.index import ClassMap, Index
from delt_hpc.errors import UserError, some
from delt_hpc.run.folder import write_csv

COLUMNS = ("score", "img_path", "class", "class_index")
_TYPES = {"img_path": str, "class": str, "class_index": np.int64}


def rank_class(index: Index, positions: np.ndarray, scores: np.ndarray, folder: str, class_index: int) -> pd.DataFrame:
    """The ranking of one class: score descending, equal scores by path."""
    table = pd.DataFrame(
        {
            "score": scores.astype(np.float64),
            "img_path": [index.paths[p] for p in positions.tolist()],
            "class": folder,
            "class_index": class_index,
        }
    )
    return table.sort_values(["score", "img_path"], ascending=[False, True], ignore_index=True)


def write_ranking(path: Path, table: pd.DataFrame) -> None:
    """CSV; a float64 score is written with the digits that give it back exactly."""
    write_csv(path, lambda file: table.to_csv(file, index=False, columns=list(COLUMNS)))


def read_ranking(path: Path) -> pd.DataFrame:
    """A ranking that this package wrote."""
    # Python's own float() reads back exactly what was written; pandas' fast parser may be off by a bit.
    return pd.read_csv(path, dtype=_TYPES, converters={"score": float}, keep_default_na=False)


def read_given(path: Path, index: Index, classes: ClassMap) -> pd.DataFrame:
    """A ranking made elsewhere, with columns score, img_path, class, brought into class-map order.

    img_path may be relative to the training folder or end in such a path; every training image must be there once.

    Raises:
        UserError: naming what is missing, unknown, double or no number.
    """
    where = f"rank.csv: {path}"
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"cannot be read: {error}", where=where) from None
    missing = [name for name in COLUMNS[:3] if name not in table]
    if missing:
        raise UserError(f"has no column {some(missing)}", where=where, expected="columns score, img_path, class")
    scores = pd.to_numeric(table["score"], errors="coerce")
    bad = table.index[~np.isfinite(scores)]
    if len(bad):
        raise UserError(f"line {bad[0] + 2}: score {table['score'][bad[0]]!r} is no finite number", where=where)
    place = {name: i for i, name in enumerate(index.paths)}
    depth = {path.count("/") + 1 for path in index.paths}
    found = [_locate(given, place, depth) for given in table["img_path"]]
    lost = [given for given, position in zip(table["img_path"], found, strict=True) if position is None]
    if lost:
        raise UserError(f"{len(lost)} images are not in the training set: {some(lost, 5)}", where=where)
    positions = np.asarray(found, dtype=np.int64)
    counts = np.bincount(positions, minlength=len(index))
    wrong = [f"{index.paths[i]} ({counts[i]} times)" for i in np.flatnonzero(counts != 1)]
    if wrong:
        raise UserError(f"{len(wrong)} training images are not there exactly once: {some(wrong, 5)}", where=where)
    labels = index.labels[positions]
    other = [
        f"{p}: {c!r}"
        for p, c, label in zip(table["img_path"], table["class"], labels, strict=True)
        if c != classes.folders[label]
    ]
    if other:
        raise UserError(
            f"{len(other)} images carry another class than their folder: {some(other, 5)}",
            where=where,
            expected="the class folder as text (`00010`, not 10)",
        )
    exact = scores.to_numpy(np.float64)
    return pd.concat(
        [
            rank_class(index, positions[labels == i], exact[labels == i], folder, i)
            for i, folder in enumerate(classes.folders)
        ],
        ignore_index=True,
    )


def _locate(given: str, place: dict[str, int], depths: set[int]) -> int | None:
    parts = given.replace("\\", "/").split("/")
    tails = ("/".join(parts[-depth:]) for depth in sorted(depths, reverse=True))
    return next((place[path] for path in (given, *tails) if path in place), None)
