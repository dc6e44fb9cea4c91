"""The synthesis benchmark's results: a line for each row, a plot for each network."""

from functools import partial
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from delt_hpc.bench.synthesis.variants import PRECISIONS, VARIANTS
from delt_hpc.report.drawing import chart

UNSTEADY = 0.2  # spread above which a row's times mean little


def line(row: "pd.Series[Any]") -> str:
    """One row in short."""
    name = f"{row['network']} {row['precision']} {row['variant']}: "
    if isinstance(row["failure"], str):
        return name + row["failure"]
    ratio = "" if pd.isna(row["ratio"]) else f"{row['ratio']:.2f} x reference, "
    unsteady = f"; unsteady, blocks differ by {row['spread']:.0%}" if row["spread"] > UNSTEADY else ""
    return name + ratio + f"{row['ms']:.3g} ms, {row['image_iterations_per_s']:.4g} image-iterations/s" + unsteady


def plot(timed: pd.DataFrame, network: str) -> bytes:
    """Image-iterations per second of a network's rows, as a PNG."""
    return chart("synthesis", f"Recovery of {network}", "", partial(_draw, timed)).png


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
