"""Reads tables and JSON records of the run folder."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from delt_hpc.errors import UserError
from delt_hpc.run.folder import read_json


def read(path: Path, numbers: Sequence[str], texts: Sequence[str] = ()) -> pd.DataFrame:
    """The named columns: `numbers` as float64 with NaN where empty, `texts` as strings (also `NA` and `00010`).

    Raises:
        UserError: the file is missing or damaged, or lacks a column.
    """
    columns = [*numbers, *texts]
    try:
        return pd.read_csv(
            path,
            usecols=columns,
            dtype=dict.fromkeys(numbers, np.float64) | dict.fromkeys(texts, str),
            keep_default_na=False,
            na_values={name: ["", "nan"] for name in numbers},
        )[columns]
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path)) from None
    except (ValueError, OSError) as error:
        raise UserError(f"is damaged: {error}", where=str(path), expected=f"columns {', '.join(columns)}") from None


def record(path: Path, names: Iterable[str]) -> dict[str, Any]:
    """The named values of a JSON object.

    Raises:
        UserError: the file is missing or damaged, or lacks a name.
    """
    try:
        content = read_json(path)
        return {name: content[name] for name in names}
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path)) from None
    except (KeyError, TypeError):
        raise UserError("is damaged", where=str(path), expected=f"an object with {', '.join(names)}") from None


def number(value: float) -> float | None:
    """The value as float; None for NaN and infinity."""
    return float(value) if np.isfinite(value) else None


def numbers(values: Iterable[float]) -> tuple[float | None, ...]:
    return tuple(number(value) for value in values)
