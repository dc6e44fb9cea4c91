"""Times of all operators in every variant, as a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch._functorch.config

from delt_hpc.bench import machine
from delt_hpc.bench.kernels.cases import Batch, Case, cases
from delt_hpc.bench.kernels.measure import BASELINE, VARIANTS, Measured, expected, measure
from delt_hpc.bench.peaks import copy_bandwidth
from delt_hpc.bench.timing import capture_stream
from delt_hpc.run.folder import write_csv

PASSES = ("forward", "backward")
COLUMNS = (
    "ratio", "network", "operator", "shape", "pass", "variant", "median_ms", "p20_ms", "p80_ms", "gb_per_s",
    "share_of_copy", "error", "note", "count", "modelled_mb",
)  # fmt: skip


def bench(
    networks: Sequence[str], images: int, variants: Sequence[str], dtype: torch.dtype, device: torch.device, out: Path
) -> pd.DataFrame:
    """Measure every operator of the networks, and write `kernels.csv` to `out`.

    A variant's results and gradients are checked first (`measure.expected`); a wrong one gets a note and no time.

    Args:
        networks: of `cases.SIZES`.
        images: packed into one call, in eight segments.
        variants: of `VARIANTS`; the baseline is always measured.
        dtype: of the activations, float32 or bfloat16.

    Returns:
        one row for each operator, shape, pass and variant. `ratio`: the baseline's time over this one's; `error`: the
        largest of a tensor, relative; `count`: how often the operator runs in an iteration; `share_of_copy`: bandwidth
        of the modelled bytes over that of a copy in the same run.
    """
    variants = [name for name in VARIANTS if name == BASELINE or name in variants]
    batch = Batch.of(images, dtype, device)
    rows: list[dict[str, Any]] = []
    # The first lets compiled statistics fuse with what follows; the second lets a backward pass run more than once.
    settings = {"ban_recompute_used_far_apart": False, "donated_buffer": False}
    with torch._functorch.config.patch(settings), capture_stream(device):
        copy = copy_bandwidth(device)
        for network in networks:
            for case in cases(network, batch):
                rows += _rows(case, variants, copy, device)
    ran_with: dict[str, Any] = {
        "copy_gb_per_s": copy / 1e9,
        "images": images,
        "dtype": str(dtype).removeprefix("torch."),
    }
    table = pd.DataFrame(rows, columns=list(COLUMNS)).assign(**ran_with, **machine.record())
    write_csv(out / "kernels.csv", lambda file: table.to_csv(file, index=False, float_format="%.5g"))
    return table


def totals(table: pd.DataFrame) -> pd.DataFrame:
    """All operators of an iteration together: for each network and pass the ratios, then the baseline's milliseconds.

    NaN where an operator has no time.
    """
    keys = ["network", "pass", "variant"]
    times = (table["median_ms"] * table["count"]).groupby([table[key] for key in keys], sort=False)
    wide = times.agg(lambda column: column.sum(skipna=False)).unstack("variant")
    ratios = pd.DataFrame({name: wide[BASELINE] / wide[name] for name in VARIANTS if name in wide and name != BASELINE})
    return ratios.assign(**{f"{BASELINE}_ms": wide[BASELINE]}).reset_index()


def summary(table: pd.DataFrame) -> str:
    """Ratios first, then every time, then why some are missing."""
    missing = table["median_ms"].isna()
    shown = [column for column in COLUMNS if column not in ("note", "count", "modelled_mb")]
    copy = f"gb_per_s: modelled bytes over time; a copy reaches {table['copy_gb_per_s'][0]:.3g}"
    parts = [text(totals(table)), text(table.loc[~missing, shown]), copy]
    for (name, note), rows in table[missing].groupby(["variant", "note"], sort=False):
        places = rows[["network", "operator", "shape"]].drop_duplicates()
        everywhere = len(rows) == (table["variant"] == name).sum()
        parts.append(f"{name}: {note}" if everywhere else f"{name}, {'; '.join(map(', '.join, places.values))}: {note}")
    return "\n\n".join(parts)


def text(table: pd.DataFrame) -> str:
    """A table for a terminal."""
    return table.to_string(index=False, na_rep="-", float_format="{:.3g}".format)


def _rows(case: Case, variants: Sequence[str], copy: float, device: torch.device) -> list[dict[str, Any]]:
    exact, allowed = expected(case)
    found = {name: measure(case, name, exact, allowed, device) for name in variants}
    passes = PASSES if case.leaves else PASSES[:1]
    return [_row(case, name, i, found[name], found[BASELINE], copy) for i in range(len(passes)) for name in variants]


def _row(case: Case, name: str, i: int, found: Measured, baseline: Measured, copy: float) -> dict[str, Any]:
    row = {
        "network": case.network,
        "operator": case.operator,
        "shape": case.shape,
        "pass": PASSES[i],
        "variant": name,
        "error": found.error,
        "note": found.note,
        "count": case.count,
        "modelled_mb": case.bytes[i] / 1e6,
    }
    if not found.passes:
        return row
    rate = case.bytes[i] / (found.passes[i].median_ms / 1e3)
    ratio = baseline.passes[i].median_ms / found.passes[i].median_ms if baseline.passes else None
    return row | found.passes[i]._asdict() | {"gb_per_s": rate / 1e9, "share_of_copy": rate / copy, "ratio": ratio}
