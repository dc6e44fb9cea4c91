"""All rows of a stage: their blocks take turns, so that a busy machine slows down all of them."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch.utils.benchmark import timer

from delt_hpc.bench import machine
from delt_hpc.bench.floor import Work, work
from delt_hpc.bench.peaks import measured_peak
from delt_hpc.bench.stages.child import ChildWorkload
from delt_hpc.bench.stages.settings import COMPARED, start
from delt_hpc.bench.stages.workload import Case, Settings, Workload
from delt_hpc.models.registry import build
from delt_hpc.run.folder import write_csv

FILE = "stages.csv"
MESSAGE_LENGTH = 200  # characters of an error in a row
COLUMNS = (
    "ratio", "ratio_before",  # images per second over those of the baseline, and of the last row, in the same run
    "stage", "network", "teacher", "size", "settings", "keep_memory", "precision",
    "images_per_s",  # median of all blocks; an image of recovery counts in each of its iterations
    "spread",  # fastest minus slowest block over the median
    "floor_share",  # the shortest possible time over the measured one, with the peaks measured in the same run
    "error", "start_s", "failure", "batch_size", "ipc", "repeats", "peak_gib",
)  # fmt: skip


def bench(
    cases: Sequence[Case], seconds: float, repeats: int, keep_memory: bool, out: Path, echo: Callable[[str], None]
) -> pd.DataFrame:
    """Measure every case by default settings and in its plain form, and write `stages.csv` to `out`.

    The gradient or the scores of a first step are compared with float64 before anything is timed; a row that is wrong
    or fails says why. The file is written after every case.

    Args:
        seconds: aim for the length of a block.
        repeats: blocks of each row, of which the median counts.
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
        before = "" if pd.isna(row["ratio_before"]) else f", {row['ratio_before']:.2f} x before"
        lines.append(
            f"{name:38} {row['images_per_s']:9.1f} images/s, spread {row['spread']:.0%}, {row['ratio']:.2f} x"
            f" {COMPARED[row['stage']][0]}{before}"
        )
    return "\n".join(lines)


def _rows(case: Case, seconds: float, repeats: int, keep_memory: bool) -> list[dict[str, Any]]:
    compared = COMPARED[case.stage]
    with ExitStack() as stack:
        here = [_Row(case, settings, keep_memory) for settings in ("default", *compared)]
        before = [_Row(case, compared[-1], False, stack.enter_context)] if keep_memory else []
        rows = [*here, *before]
        for row in rows:
            row.prepare(seconds)
        for _ in range(repeats):
            for row in rows:
                row.time_block()
    return [row.numbers(here[1].rate, before[0].rate if before else None) for row in rows]


class _Row:
    """A workload and its times, or the reason why it has none.

    Args:
        enter: enters a child process's context; None: the workload runs in this process.
    """

    def __init__(
        self,
        case: Case,
        settings: Settings,
        keep_memory: bool,
        enter: Callable[[ChildWorkload], ChildWorkload] | None = None,
    ) -> None:
        self._case, self._settings, self._keep_memory, self._enter = case, settings, keep_memory, enter
        self._rates: list[float] = []
        self._facts: dict[str, Any] = {}

    @property
    def rate(self) -> float | None:
        return median(self._rates) if self._rates else None

    def prepare(self, seconds: float) -> None:
        """Build the workload, check and warm it up, and choose the number of steps that take about `seconds`."""
        device, began = self._case.device, timer()
        resident = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        try:
            self._workload: Workload = (
                self._enter(ChildWorkload(self._case, self._settings))
                if self._enter
                else start(self._case, self._settings)
            )
            self._facts["batch_size"] = self._workload.batch_size
            self._facts["precision"] = str(self._workload.dtype).removeprefix("torch.")
            self._facts["error"] = self._workload.error()
            self._workload.block(1)
            self._facts["start_s"] = timer() - began
            self._steps = max(1, round(seconds / self._workload.block(1).seconds))
        except Exception as error:  # whatever fails in one row, the others can still be measured
            self._facts["failure"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:MESSAGE_LENGTH]
            return
        if device.type == "cuda":
            self._facts["peak_gib"] = (torch.cuda.max_memory_allocated(device) - resident) / 2**30

    def time_block(self) -> None:
        if "failure" not in self._facts:
            images, seconds = self._workload.block(self._steps)
            self._rates.append(images / seconds)

    def numbers(self, baseline: float | None, before: float | None) -> dict[str, Any]:
        """The columns of the table."""
        case = self._case
        named = {"stage": case.stage, "network": case.network, "teacher": case.teacher, "size": case.size}
        named |= {"settings": self._settings, "keep_memory": self._keep_memory, "ipc": case.ipc}
        if self.rate is None:
            return named | self._facts
        spread = (max(self._rates) - min(self._rates)) / self.rate
        measured = {"images_per_s": self.rate, "spread": spread, "repeats": len(self._rates)}
        ratios = {"ratio": baseline and self.rate / baseline, "ratio_before": before and self.rate / before}
        share = _floor_share(case, self._workload, self.rate) if self._settings == "default" else None
        return named | self._facts | measured | ratios | {"floor_share": share}


def _floor_share(case: Case, workload: Workload, rate: float) -> float:
    """The images per second of a workload over those of the floor."""
    images, element, peak = workload.batch_size, workload.dtype.itemsize, _peak(workload.dtype, case.device)
    network = _work(case.network, case)
    if case.stage == "recover":
        return network.seconds(images, element, peak) / images * rate
    if case.stage == "rank":
        return network.inference_seconds(images, element, peak) / images * rate
    seconds = network.training_seconds(images, element, peak)
    if case.stage == "evaluate":
        seconds += _work(case.teacher, case).inference_seconds(images, element, peak)
    return seconds / images * rate


def _work(network: str, case: Case) -> Work:
    return work(build(network, case.classes, case.size).eval(), case.size)


_peak = cache(measured_peak)
