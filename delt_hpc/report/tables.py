"""Tables and records of the run folder, read with what a reader needs of them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from delt_hpc.errors import UserError
from delt_hpc.run.folder import read_json


def read(path: Path, numbers: Sequence[str], texts: Sequence[str] = ()) -> pd.DataFrame:
    """The named columns: `numbers` as float64, NaN where empty; `texts` as they stand, also `NA` and `00010`.

    Raises:
        UserError: no such file, no readable table, or a column is missing.
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
        UserError: no such file, no readable JSON, or a name is missing.
    """
    try:
        content = read_json(path)
        return {name: content[name] for name in names}
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path)) from None
    except (KeyError, TypeError):
        raise UserError("is damaged", where=str(path), expected=f"an object with {', '.join(names)}") from None


def number(value: float) -> float | None:
    """None for NaN and infinity."""
    return float(value) if np.isfinite(value) else None


def numbers(values: Iterable[float]) -> tuple[float | None, ...]:
    return tuple(number(value) for value in values)
