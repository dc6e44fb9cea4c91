"""The synthesis benchmark's results for people: a line a row, a Markdown page, a plot for each network."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from delt_hpc.bench.synthesis_table import HOURS
from delt_hpc.bench.synthesis_variants import PRECISIONS, VARIANTS
from delt_hpc.report.drawing import chart

UNSTEADY = 0.2  # spread of the blocks above which a row's times mean little

_METHOD = """\
Weights and images are random, BatchNorm statistics those of a real pass. Before times are taken, the loss and the
image gradient of the first batches' first iterations are compared with the published formula in float64; a variant
that is off by more than the CSV says is allowed has no times. Of the blocks of iterations, each between two waits for
the device, the median counts; "spread" is the slowest minus the fastest as a share of it: where it is large, the
machine was busy with something else and the ratio means little. "s an image" is the whole recipe's cost and "h" that
of a data set, both with a full pipeline. "start" is the making of the engine and the first iterations, compilers
starting from nothing, but for Triton kernels that an earlier row has used; it and the warm-up are in no other number.
"host" is what the host needs to launch an iteration. The floor is modelled: convolutions and linear layers take their
operations or their bytes, whichever is longer, all between two of them is one pass over memory; augmentation, loss
and Adam are left out."""


def line(row: "pd.Series[Any]") -> str:
    """What a row says, shortly."""
    name = f"{row['network']} {row['precision']} {row['variant']}: "
    if isinstance(row["failure"], str):
        return name + row["failure"]
    ratio = "" if pd.isna(row["ratio"]) else f"{row['ratio']:.2f} x reference, "
    unsteady = f"; unsteady, blocks differ by {row['spread']:.0%}" if row["spread"] > UNSTEADY else ""
    return name + ratio + f"{row['ms']:.3g} ms, {row['image_iterations_per_s']:.4g} image-iterations/s" + unsteady


def markdown(table: pd.DataFrame) -> str:
    """The page; what could not be measured stands below the table of its network."""
    first = table.iloc[0]
    versions = ", ".join(f"{name} {first[name]}" for name in ("torch", "triton", "delt-hpc") if first[name])
    parts = [
        "# Recovery iterations, engine by engine",
        f"{first['gpu'] or first['cpu']}; {versions}; {first['date']}. Recipe: IPC {first['ipc']}, batch"
        f" {first['batch_size']}, {first['iterations']} iterations, {first['rounds']} rounds.",
    ]
    for network, rows in table.groupby("network", sort=False):
        timed, failed = rows[rows["failure"].isna()], rows[rows["failure"].notna()]
        parts.append(f"## {network}, {rows.iloc[0]['size']} px")
        if len(timed):
            parts.append(_grid([(head, timed.apply(cell, axis=1)) for head, cell in _cells(timed)]))
        if len(failed):
            reasons = [f"- {row['precision']}, {row['variant']}: {row['failure']}" for _, row in failed.iterrows()]
            parts.append("Not measured:\n\n" + "\n".join(reasons))
    parts += ["## Method", _METHOD, "Ratios are to `reference` in float32 and in TF32, on the same network."]
    used = [name for name in VARIANTS if name in set(table["variant"])]
    parts.append("\n".join(f"- `{name}`: {VARIANTS[name].what}" for name in used))
    peaks = table.dropna(subset=["peak_tflops"]).drop_duplicates("precision")
    if len(peaks):
        parts.append("Peaks that the floor is computed with, measured in this run:")
        parts.append(
            _grid(
                [
                    ("precision", peaks["precision"]),
                    ("matrix products, TFLOP/s", peaks["peak_tflops"].map("{:.3g}".format)),
                    ("copy, GB/s", peaks["peak_gb_per_s"].map("{:.4g}".format)),
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def plot(timed: pd.DataFrame, network: str) -> bytes:
    """Image-iterations a second of a network's rows, as a PNG."""
    return chart("synthesis", f"Recovery of {network}", "", partial(_draw, timed)).png


def _cells(timed: pd.DataFrame) -> list[tuple[str, Callable[["pd.Series[Any]"], str]]]:
    """Headings of a network's table, and what stands below each."""
    hours = max((name for name in map(str, timed) if name.startswith(HOURS)), key=lambda name: timed[name].max())
    return [
        ("ratio", _number("ratio", ".2f")),
        ("to TF32", _number("ratio_tf32", ".2f")),
        ("precision", lambda row: str(row["precision"])),
        ("variant", lambda row: str(row["variant"])),
        ("ms", _number("ms", ".3g")),
        ("spread", _number("spread", ".0%")),
        ("images", _number("images", ".4g")),
        ("image-iterations/s", _number("image_iterations_per_s", ".4g")),
        ("s an image", _number("s_per_image", ".3g")),
        (f"h, {hours.removeprefix(HOURS)}", _number(hours, ".3g")),
        ("of the floor", _number("floor_share", ".1%")),
        ("floor, ms", _number("floor_ms", ".3g")),
        ("GFLOP", _number("gflop", ".4g")),
        ("GB", _number("gbyte", ".3g")),
        ("host, ms", _number("host_ms", ".3g")),
        ("peak GiB", _number("peak_gib", ".3g")),
        ("start, s", _number("start_s", ".3g")),
        ("warm-up, s", _number("warmup_s", ".3g")),
    ]


def _number(column: str, form: str) -> Callable[["pd.Series[Any]"], str]:
    return lambda row: "" if pd.isna(row[column]) else format(row[column], form)


def _grid(columns: list[tuple[str, "pd.Series[Any]"]]) -> str:
    """A Markdown table."""
    lines = [[head for head, _ in columns], ["---"] * len(columns)]
    lines += [list(row) for row in zip(*(values for _, values in columns), strict=True)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _draw(rows: pd.DataFrame, axes: Axes) -> None:
    names = [name for name in VARIANTS if name in set(rows["variant"])][::-1]
    for precision in PRECISIONS:
        chosen = rows[rows["precision"] == precision]
        if len(chosen):
            heights = [names.index(name) for name in chosen["variant"]]
            axes.plot(chosen["image_iterations_per_s"], heights, linestyle="", marker="o", label=precision)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.5, len(names) - 0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("image-iterations/s")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=len(PRECISIONS))
