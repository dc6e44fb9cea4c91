"""The ranking: a table of the scores of all training images, in class-map order, within a class best first."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from delt_hpc.data.index import ClassMap, Index
from delt_hpc.errors import UserError, some
from delt_hpc.run.folder import write_csv

COLUMNS = ("score", "img_path", "class", "class_index")
_BAD_TABLE = (pd.errors.ParserError, pd.errors.EmptyDataError, pd.errors.ParserWarning)
CROP = "crop"  # the number of the ranked crop, in rankings of crops
_TYPES = {"img_path": str, "class": str, "class_index": np.int64}


def rank_class(
    index: Index,
    positions: np.ndarray,
    scores: np.ndarray,
    folder: str,
    class_index: int,
    crops: np.ndarray | None = None,
) -> pd.DataFrame:
    """The ranking of one class: by descending score, equal scores by path.

    Args:
        crops: in a ranking of crops, the number of each image's best crop.
    """
    table = pd.DataFrame(
        {
            "score": scores.astype(np.float64),
            "img_path": [index.paths[p] for p in positions.tolist()],
            "class": folder,
            "class_index": class_index,
        }
    )
    if crops is not None:
        table[CROP] = crops
    return table.sort_values(["score", "img_path"], ascending=[False, True], ignore_index=True)


def write_ranking(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV file, with enough digits to read back the float64 scores exactly."""
    columns = [name for name in (*COLUMNS, CROP) if name in table]
    write_csv(path, lambda file: table.to_csv(file, index=False, columns=columns))


def read_ranking(path: Path) -> pd.DataFrame:
    """Read a ranking that `write_ranking` wrote."""
    # Python's float() reads back the exact value; pandas' fast parser may be wrong in the last bit.
    return pd.read_csv(path, dtype=_TYPES, converters={"score": float}, keep_default_na=False)


def read_given(path: Path, index: Index, classes: ClassMap) -> pd.DataFrame:
    """Read a ranking from elsewhere, with columns score, img_path, class, and bring it into class-map order.

    img_path is relative to the training folder or ends in such a path. Every training image must appear once.

    Raises:
        UserError: naming columns and images that are missing, unknown images, duplicates, and invalid scores.
    """
    where = f"rank.csv: {path}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows with more cells than the header
            table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except (OSError, UnicodeDecodeError, *_BAD_TABLE) as error:
        raise UserError(f"cannot be read: {error}", where=where) from None
    missing = [name for name in COLUMNS[:3] if name not in table]
    if missing:
        raise UserError(f"has no column {some(missing)}", where=where, expected="columns score, img_path, class")
    scores = pd.to_numeric(table["score"], errors="coerce")
    bad = table.index[~np.isfinite(scores)]
    if len(bad):
        raise UserError(f"line {bad[0] + 2}: score {table['score'][bad[0]]!r} is not a finite number", where=where)
    position_of = {path: position for position, path in enumerate(index.paths)}
    depths = {path.count("/") + 1 for path in index.paths}
    located = [_locate(path, position_of, depths) for path in table["img_path"]]
    unknown = [path for path, position in zip(table["img_path"], located, strict=True) if position is None]
    if unknown:
        raise UserError(f"{len(unknown)} images are not in the training set: {some(unknown, 5)}", where=where)
    positions = np.asarray(located, dtype=np.int64)
    counts = np.bincount(positions, minlength=len(index))
    wrong = [f"{index.paths[i]} ({counts[i]} times)" for i in np.flatnonzero(counts != 1)]
    if wrong:
        raise UserError(f"{len(wrong)} training images do not appear exactly once: {some(wrong, 5)}", where=where)
    labels = index.labels[positions]
    other = [
        f"{p}: {c!r}"
        for p, c, label in zip(table["img_path"], table["class"], labels, strict=True)
        if c != classes.folders[label]
    ]
    if other:
        raise UserError(
            f"{len(other)} images have a class that differs from their folder: {some(other, 5)}",
            where=where,
            expected="the class folder as a string (`00010`, not 10)",
        )
    exact = scores.to_numpy(np.float64)
    return pd.concat(
        [
            rank_class(index, positions[labels == i], exact[labels == i], folder, i)
            for i, folder in enumerate(classes.folders)
        ],
        ignore_index=True,
    )


def _locate(path: str, position_of: dict[str, int], depths: set[int]) -> int | None:
    """Position of the path, or of its longest tail, among the training images."""
    parts = path.replace("\\", "/").split("/")
    tails = ("/".join(parts[-depth:]) for depth in sorted(depths, reverse=True))
    return next((position_of[name] for name in (path, *tails) if name in position_of), None)
