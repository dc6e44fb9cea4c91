"""The loss curves of recovery, averaged over all finished batches."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from delt_hpc.config.schema import Recover
from delt_hpc.report import tables
from delt_hpc.report.content import LossCurve
from delt_hpc.run.folder import RunFolder, is_done

CURVE = "curve.csv"
_VALUES = ["active", "loss", "cross_entropy", "bn_loss"]


def finished(run: RunFolder) -> list[Path]:
    """Folders of the finished batches."""
    return sorted(folder for folder in run.recover.iterdir() if is_done(folder)) if run.recover.is_dir() else []


def average(batches: Sequence[Path], recover: Recover) -> LossCurve | None:
    """Mean over the batches at each recorded iteration; None without batches or iterations.

    Reads one table at a time.
    """
    if not recover.iterations:
        return None
    sums = pd.DataFrame(columns=[*_VALUES, "batches"], dtype=float)
    for folder in batches:
        table = tables.read(folder / CURVE, ["iteration", *_VALUES]).set_index("iteration").assign(batches=1.0)
        iterations = sums.index.union(table.index)
        # Not DataFrame.add: its fill value would also replace the NaN of a batch that diverged.
        sums = sums.reindex(iterations, fill_value=0.0) + table.reindex(iterations, fill_value=0.0)
    if sums.empty:
        return None
    mean = sums.div(sums["batches"], axis=0)
    return LossCurve(
        batches=len(batches),
        total=recover.iterations,
        borders=tuple(range(0, recover.iterations, recover.round_length)),
        iterations=tuple(int(iteration) for iteration in mean.index),
        active=tuple(mean["active"].tolist()),
        loss=tuple(mean["loss"].tolist()),
        cross_entropy=tuple(mean["cross_entropy"].tolist()),
        bn_loss=tuple(mean["bn_loss"].tolist()),
    )
