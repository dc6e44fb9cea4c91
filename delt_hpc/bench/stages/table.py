"""`delt-hpc bench stages`: images per second of squeeze, rank, recover and evaluate by their default settings."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from delt_hpc.bench import machine
from delt_hpc.bench.stages.recovery import PackedRecovery, ReferenceRecovery
from delt_hpc.bench.stages.rows import Elsewhere, Row, other_process, time_in_turns
from delt_hpc.bench.stages.scoring import ScoringStep
from delt_hpc.bench.stages.training import TrainingStep
from delt_hpc.bench.stages.workload import BenchStage, Case, Settings, Workload
from delt_hpc.run.folder import write_csv

FILE = "stages.csv"
COLUMNS = (
    "ratio", "ratio_before",  # images per second over those of the baseline, and of the last row, in the same run
    "stage", "network", "teacher", "size", "settings", "keep_memory", "precision",
    "images_per_s",  # median of all blocks; an image of recovery counts in each of its iterations
    "spread",  # fastest minus slowest block over the median
    "floor_share",  # the shortest possible time over the measured one, with the peaks measured in the same run
    "error", "start_s", "failure", "batch_size", "ipc", "repeats", "peak_gib",
)  # fmt: skip

COMPARED: dict[BenchStage, tuple[Settings, ...]] = {
    "squeeze": ("plain",),
    "rank": ("plain",),
    "recover": ("reference", "uncompiled"),
    "evaluate": ("plain",),
}
"""What the default settings of a stage are compared with. The first is the baseline of all ratios. The last is also
measured in a process that returns freed memory to the kernel."""


def start(case: Case, settings: Settings) -> Workload:
    if case.stage == "rank":
        return ScoringStep(case, settings)
    if case.stage != "recover":
        return TrainingStep(case, settings)
    if settings == "reference":
        return ReferenceRecovery(case)
    if settings == "uncompiled":
        return PackedRecovery(case, precision="float32", compile=False, segments=1)
    return PackedRecovery(case)


def bench(
    cases: Sequence[Case], seconds: float, repeats: int, keep_memory: bool, out: Path, echo: Callable[[str], None]
) -> pd.DataFrame:
    """Measure every case by default settings and in its plain form, and write `stages.csv` to `out`.

    The gradient or the scores of a first step are compared with float64 before anything is timed; a row that is wrong
    or fails says why. The file is written after every case.

    Args:
        seconds, repeats: see `rows.time_in_turns`.
        keep_memory: whether this process keeps freed memory; then one more row, measured in a process that does not,
            shows the plain form without it.
    """
    ran_with, rows = machine.record(), list[dict[str, Any]]()
    table = pd.DataFrame()
    for case in cases:
        found = _rows(case, seconds, repeats, keep_memory)
        rows += found
        table = pd.DataFrame(rows).reindex(columns=list(COLUMNS)).assign(**ran_with)
        write_csv(out / FILE, partial(table.to_csv, index=False, float_format="%.5g"))
        echo(text(table.iloc[-len(found) :]))
    return table


def text(table: pd.DataFrame) -> str:
    """Rows of one case for a terminal."""
    first = table.iloc[0]
    networks = first["network"] if first["network"] == first["teacher"] else f"{first['network']}, {first['teacher']}"
    lines = [f"{first['stage']}, {networks}, {first['size']} px, batches of {first['batch_size']}"]
    kept = bool(table["keep_memory"].any())
    for row in table.to_dict("records"):
        name = f"  {row['settings']} {row['precision']}" + ", memory not kept" * (kept and not bool(row["keep_memory"]))
        if isinstance(row["failure"], str):
            lines.append(f"{name}: {row['failure']}")
            continue
        before = "" if pd.isna(row["ratio_before"]) else f", {row['ratio_before']:.2f} x last row"
        floor = "" if pd.isna(row["floor_share"]) else f", {row['floor_share']:.0%} of the floor's speed"
        lines.append(
            f"{name:38} {row['images_per_s']:9.1f} images/s, spread {row['spread']:.0%}, {row['ratio']:.2f} x"
            f" {COMPARED[row['stage']][0]}{before}{floor}"
        )
    return "\n".join(lines)


def _rows(case: Case, seconds: float, repeats: int, keep_memory: bool) -> list[dict[str, Any]]:
    compared = COMPARED[case.stage]
    here = {settings: Row(case, partial(start, case, settings)) for settings in ("default", *compared)}
    with other_process() as process:
        plain = partial(start, case, compared[-1])
        before = [Row(case, partial(Elsewhere, process, plain))] if keep_memory else []
        time_in_turns([*here.values(), *before], seconds, repeats)
    facts = {"stage": case.stage, "network": case.network, "teacher": case.teacher, "size": case.size, "ipc": case.ipc}
    rows = [
        *(facts | {"settings": settings, "keep_memory": keep_memory} | row.numbers() for settings, row in here.items()),
        *(facts | {"settings": compared[-1], "keep_memory": False} | row.numbers() for row in before),
    ]
    for row in rows:
        row["ratio"] = _over(row, here[compared[0]])
        row["ratio_before"] = _over(row, before[0]) if before else None
    return rows


def _over(row: dict[str, Any], other: Row) -> float | None:
    return row["images_per_s"] / other.rate if "images_per_s" in row and other.rate else None
