"""Times of the kernels' operators on the shapes of real networks, beside what PyTorch does without them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch._functorch.config
from matplotlib.axes import Axes

from delt_hpc.bench.kernel_case import ROUNDS, Batch, Case
from delt_hpc.bench.kernel_cases import SIZES, cases
from delt_hpc.bench.kernel_trial import Measured, Trial, error_of, measure
from delt_hpc.bench.machine import facts
from delt_hpc.bench.stopwatch import copy_bandwidth, working_stream
from delt_hpc.errors import UserError
from delt_hpc.report.drawing import chart
from delt_hpc.report.palette import light
from delt_hpc.run.folder import write_csv, writing

FORMS = {
    "eager": "the published formula, op by op",
    "published": "the published formula, compiled",
    "torch": "ours in PyTorch, compiled",
    "triton": "our kernels",
}
COLOURS = {"eager": "muted", "published": "random", "torch": "selected", "triton": "distilled"}
BASELINE = "eager"
PACKED = sum(ROUNDS)
PASSES = ("forward", "backward")
COLUMNS = (
    "ratio", "network", "operator", "shape", "pass", "form", "median_ms", "p20_ms", "p80_ms", "gb_per_s",
    "share_of_copy", "error", "note", "count", "modelled_mb",
)  # fmt: skip


def bench(
    networks: Sequence[str], images: int, forms: Sequence[str], dtype: torch.dtype, device: torch.device, out: Path
) -> pd.DataFrame:
    """Measure every operator of the networks in every form, and write `kernels.csv` and `kernels.png` to `out`.

    First a form's results and gradients are held against float64: where an error is more than twice that of the
    baseline in the same type, rounding aside, its rows have a note and no time.

    Args:
        networks: of resnet18, resnet50, convnet4.
        images: packed into one call, in eight segments.
        forms: of `FORMS`; the baseline is measured in any case.
        dtype: of activations, float32 or bfloat16.

    Raises:
        UserError: an unknown network or form.

    Returns:
        one row for each operator, shape, pass and form, with the columns of the CSV: `COLUMNS` and what it was measured
        with. `ratio` is the baseline's time to this one's, `error` the largest of a tensor, relative, `count` how often
        the operator runs in an iteration, `share_of_copy` GB/s of modelled bytes to those of a copy in the same run.
    """
    _check("networks", networks, tuple(SIZES))
    _check("forms", forms, tuple(FORMS))
    forms = [form for form in FORMS if form == BASELINE or form in forms]
    batch = Batch.of(images, dtype, device)
    rows: list[dict[str, Any]] = []
    # Only so do compiled statistics fuse with what follows them; and a backward pass is run more than once.
    settings = {"ban_recompute_used_far_apart": False, "donated_buffer": False}
    with torch._functorch.config.patch(settings), working_stream(device):
        copy = copy_bandwidth(device)
        for network in networks:
            for case in cases(network, batch):
                rows += _rows(case, forms, copy, device)
    measured_with: dict[str, Any] = {
        "copy_gb_per_s": copy,
        "images": images,
        "dtype": str(dtype).removeprefix("torch."),
        **facts(),
    }
    table = pd.DataFrame(rows, columns=list(COLUMNS)).assign(**measured_with)
    write_csv(out / "kernels.csv", lambda file: table.to_csv(file, index=False, float_format="%.5g"))
    with writing(out / "kernels.png") as file:
        file.write(chart("kernels", "Share of the copy bandwidth", "", lambda axes: _draw(table, axes)).png)
    return table


def totals(table: pd.DataFrame) -> pd.DataFrame:
    """An iteration's operators together, a row for each network and pass: each form's ratio, then the baseline's
    milliseconds. Empty where an operator has no time."""
    keys = ["network", "pass", "form"]
    times = (table["median_ms"] * table["count"]).groupby([table[key] for key in keys], sort=False)
    wide = times.agg(lambda column: column.sum(skipna=False)).unstack("form")
    ratios = pd.DataFrame({form: wide[BASELINE] / wide[form] for form in FORMS if form in wide and form != BASELINE})
    return ratios.assign(**{f"{BASELINE}_ms": wide[BASELINE]}).reset_index()


def described(table: pd.DataFrame) -> str:
    """Ratios first, then every time, then why some are missing."""
    missing = table["median_ms"].isna()
    shown = [column for column in COLUMNS if column not in ("note", "count", "modelled_mb")]
    copy = f"gb_per_s is of modelled bytes; of a copy it is {table['copy_gb_per_s'][0]:.3g}"
    parts = [text(totals(table)), text(table.loc[~missing, shown]), copy]
    for (form, note), rows in table[missing].groupby(["form", "note"], sort=False):
        cases = rows[["network", "operator", "shape"]].drop_duplicates()
        everywhere = len(rows) == (table["form"] == form).sum()
        parts.append(f"{form}: {note}" if everywhere else f"{form}, {'; '.join(map(', '.join, cases.values))}: {note}")
    return "\n\n".join(parts)


def text(table: pd.DataFrame) -> str:
    """A table to be read on a terminal."""
    return table.to_string(index=False, na_rep="-", float_format="{:.3g}".format)


def _check(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown or not given:
        wrong = f"`{unknown[0]}` is not known here" if unknown else "none is given"
        raise UserError(wrong, where=what, expected=f"some of {', '.join(known)}")


def _rows(case: Case, forms: Sequence[str], copy: float, device: torch.device) -> list[dict[str, Any]]:
    exact = Trial(case, case.published, torch.float64).values
    baseline = Trial(case, case.published).values
    # Float32 numbers added one after the other, as compilers for CPUs do, are rounded that much.
    sequential = torch.finfo(torch.float32).eps * math.sqrt(case.terms)
    allowed = [
        2 * error_of(value, true) + max(torch.finfo(value.dtype).eps, sequential)
        for value, true in zip(baseline, exact, strict=True)
    ]
    found = {form: measure(case, form, exact, allowed, device) for form in forms}
    passes = PASSES if case.leaves else PASSES[:1]
    return [_row(case, form, i, found[form], found[BASELINE], copy) for i in range(len(passes)) for form in forms]


def _row(case: Case, form: str, i: int, found: Measured, baseline: Measured, copy: float) -> dict[str, Any]:
    row = {
        "network": case.network,
        "operator": case.operator,
        "shape": case.shape,
        "pass": PASSES[i],
        "form": form,
        "error": found.error,
        "note": found.note,
        "count": case.count,
        "modelled_mb": case.bytes[i] / 1e6,
    }
    if not found.passes:
        return row
    rate = case.bytes[i] / found.passes[i].median_ms / 1e6
    ratio = baseline.passes[i].median_ms / found.passes[i].median_ms if baseline.passes else None
    return row | found.passes[i]._asdict() | {"gb_per_s": rate, "share_of_copy": rate / copy, "ratio": ratio}


def _draw(table: pd.DataFrame, axes: Axes) -> None:
    for form, rows in table[table["median_ms"].notna()].groupby("form", sort=False):
        colour = light(COLOURS[str(form)])
        axes.plot(rows["modelled_mb"], rows["share_of_copy"], "o", markersize=4, color=colour, label=str(form))
    axes.axhline(1, color=light("border"), linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("modelled MB of a pass")
    axes.set_ylabel("modelled bytes / time, to a copy's")
    axes.set_ylim(bottom=0)
    axes.legend()
