"""The cost of the run: timing records added up by stage and by round."""

import numpy as np
import pandas as pd

from delt_hpc.config.schema import STAGES
from delt_hpc.report.content import Costs, RoundCost, StageCost
from delt_hpc.report.tables import number

# Without the report's own time: it would change the report's inputs, so that every report would be outdated at once.
SHOWN = tuple(stage for stage in STAGES if stage != "report")


def add_up(records: pd.DataFrame) -> Costs | None:
    """The costs; None without records. `records` has the columns `delt_hpc.run.timing.COLUMNS`."""
    table = records[records["stage"].isin(SHOWN)]
    if table.empty:
        return None
    total = float(table["seconds"].sum())
    return Costs(
        stages=tuple(
            _stage(stage, table[table["stage"] == stage], total) for stage in SHOWN if (table["stage"] == stage).any()
        ),
        rounds=_rounds(table),
        seconds=total,
        started=str(table["started"].min()),
        hosts=tuple(sorted({str(host) for host in table["host"]})),
    )


def _stage(stage: str, rows: pd.DataFrame, total: float) -> StageCost:
    seconds = float(rows["seconds"].sum())
    return StageCost(
        stage=stage,
        units=int(rows["unit"].nunique()),
        seconds=seconds,
        share=seconds / total if total else 0.0,
        data_wait_s=float(rows["data_wait_s"].sum()),
        compile_s=float(rows["compile_s"].sum()),
        peak_memory_mib=number(rows["peak_memory_mib"].astype(np.float64).max()),
        devices=tuple(sorted({str(device) for device in rows["device"]})),
    )


def _rounds(table: pd.DataFrame) -> tuple[RoundCost, ...]:
    recovery = table[(table["stage"] == "recover") & table["round"].notna()]
    return tuple(_round(int(index), rows) for index, rows in recovery.groupby(recovery["round"].astype(np.int64)))


def _round(index: int, rows: pd.DataFrame) -> RoundCost:
    seconds, batches = float(rows["seconds"].sum()), int(rows["unit"].nunique())
    image_iterations = int(rows["image_iterations"].sum())
    return RoundCost(
        round=index,
        batches=batches,
        seconds=seconds,
        seconds_per_batch=seconds / batches,
        image_iterations=image_iterations,
        image_iterations_per_s=image_iterations / seconds if seconds else None,
        data_wait_s=float(rows["data_wait_s"].sum()),
        compile_s=float(rows["compile_s"].sum()),
    )
