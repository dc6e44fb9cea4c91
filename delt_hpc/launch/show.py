"""Plans, states and findings as text and as JSON."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from delt_hpc.config.schema import Stage
from delt_hpc.launch.environment import Finding
from delt_hpc.launch.estimate import Disk
from delt_hpc.launch.estimate import Row as PlanRow
from delt_hpc.launch.status import Row, State

MOST_ROWS = 20  # tasks of the same stage and state; more are shown as one line
_COLOURS: dict[State, str] = {
    "done": "green",
    "running": "cyan",
    "pending": "yellow",
    "stopped": "yellow",
    "failed": "red",
    "lost": "red",
    "unknown": "magenta",
    "missing": "dim",
}


def plan(console: Console, rows: Sequence[PlanRow], disk: Disk | None, slots: int | None) -> None:
    """Print the missing tasks, their estimated cost, and where the measurements come from."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "ranges"):
        table.add_column(name, no_wrap=True)
    for name in ("tasks", "arrays", "GPUs", "CPUs", "limit", "device hours", "wall hours"):
        table.add_column(name, justify="right")
    for row in rows:
        numbers = (
            row.tasks,
            row.arrays,
            row.gpus,
            row.cpus,
            f"{row.minutes} min",
            hours(row.hours),
            hours(row.wall_hours),
        )
        table.add_row(row.stage, row.ranges, *map(str, numbers))
    console.print(table)
    for row in rows:
        if row.efficiency is not None:
            compiled = "; a job of its own compiles first" if row.warm_up else ""
            console.print(f"  {row.stage}: {row.efficiency:.0%} of a task's time is work{compiled}")
    known = [row for row in rows if row.hours is not None and row.wall_hours is not None]
    if known:
        gpu = sum(row.hours or 0 for row in known if row.gpus)
        wall = sum(row.wall_hours or 0 for row in known)
        at = f"{slots} tasks at a time" if slots else "as many tasks at a time as the profile allows"
        left_out = [row.stage for row in rows if row.hours is None]
        without = f"; without {', '.join(left_out)}" if left_out else ""
        guess = " by a model, not by measurement" if any(row.rate and not row.rate.records for row in known) else ""
        console.print(f"GPU hours {gpu:.2f}{guess}; wall time {wall:.2f} h, {at}{without}; waiting not counted")
    for row in rows:
        if row.pixels is not None:
            console.print(
                f"  {row.stage}: blocks of smaller images, on average {row.pixels:.1%} of the pixels of a full image;"
                " hours by a speed that was measured on full images are that much too long"
            )
    for row in known:
        if not row.rate:  # there is nothing to do
            continue
        count = f", {row.rate.records} measured" if row.rate.records else ""
        console.print(
            f"  {row.stage}: {row.rate.passes_per_s:,.1f} image-iterations/s on {row.rate.device}"
            f" ({row.rate.source}{count})"
        )
    unknown = [row.stage for row in rows if row.hours is None]
    if unknown:
        console.print(f"no figure for {', '.join(unknown)}: give --figures RUN_OR_FILE, --train-images N")
    if disk:
        console.print(f"disk at most {size(disk.images)} of images, {size(disk.checkpoints)} of checkpoints meanwhile")


def plan_json(rows: Iterable[PlanRow], disk: Disk | None) -> dict[str, Any]:
    stages = [{**vars(row), "rate": vars(row.rate) if row.rate else None} for row in rows]
    return {"stages": stages, "disk": vars(disk) if disk else None}


def status(rows: Sequence[Row], eta: dict[Stage, float], problem: str) -> Table:
    """A table with one line for each task. Finished stages, and many tasks in the same state, are one line."""
    table = Table(box=None, pad_edge=False, header_style="bold", caption=summary(rows), caption_justify="left")
    for name in ("stage", "range", "state", "job", "node"):
        table.add_column(name, no_wrap=True)
    for name in ("restarts", "elapsed", "done", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for stage in dict.fromkeys(row.task.stage for row in rows):
        of_stage = [row for row in rows if row.task.stage == stage]
        if len(of_stage) > 1 and all(row.state == "done" for row in of_stage):
            total = f"{sum(row.done for row in of_stage)}/{sum(row.total for row in of_stage)}"
            restarts = str(sum(row.restarts for row in of_stage))
            table.add_row(stage, f"{len(of_stage)} tasks", "[green]done[/]", "", "", restarts, "", total, "", "")
            continue
        quiet: list[State] = ["done", "pending", "missing"]
        collapsed = [state for state in quiet if sum(row.state == state for row in of_stage) > MOST_ROWS]
        for state in collapsed:
            same = [row for row in of_stage if row.state == state]
            total = f"{sum(row.done for row in same)}/{sum(row.total for row in same)}"
            table.add_row(stage, f"{len(same)} tasks", f"[{_COLOURS[state]}]{state}[/]", "", "", "", "", total, "", "")
        for row in of_stage:
            if row.state in collapsed:
                continue
            left = duration(int(eta[stage])) if stage in eta and row.state == "running" else ""
            table.add_row(
                stage,
                row.task.unit,
                f"[{_COLOURS[row.state]}]{row.state}[/]",
                row.job,
                row.node,
                str(row.restarts) if row.job else "",
                "" if row.seconds is None else duration(row.seconds),
                f"{row.done}/{row.total}",
                left,
                "; ".join(part for part in (row.message, _restarts(row)) if part).replace("[", "\\["),
            )
    if problem:
        table.title = f"[magenta]Slurm does not answer: {problem}[/]"
        table.title_justify = "left"
    return table


def _restarts(row: Row) -> str:
    """Why the task was started again the last time."""
    return f"before: {row.restarted[-1]}" if row.restarted else ""


def findings(console: Console, found: Iterable[Finding]) -> bool:
    """Print the lines of `doctor` as they come; True if one is an error."""
    failed = False
    for finding in found:
        colour = {"OK": "green", "warning": "yellow", "error": "red"}[finding.level]
        console.print(f"[{colour}]{finding.level:7}[/] ", end="")
        console.print(finding.text, highlight=False, markup=False)
        if finding.remedy:
            console.print(f"        {finding.remedy}", highlight=False, markup=False)
        failed = failed or finding.level == "error"
    return failed


def summary(rows: Iterable[Row]) -> str:
    counts = Counter(row.state for row in rows)
    return ", ".join(f"{counts[state]} {state}" for state in _COLOURS if counts[state])


def status_json(rows: Sequence[Row], eta: dict[Stage, float], problem: str, code: int) -> dict[str, Any]:
    return {
        "exit_code": code,
        "problem": problem,
        "counts": dict(Counter(row.state for row in rows)),
        "left_seconds": eta,
        "tasks": [
            {
                "stage": row.task.stage,
                "unit": row.task.unit,
                "classes": [row.task.classes.first, row.task.classes.last] if row.task.classes else None,
                "state": row.state,
                "message": row.message,
                "executor": row.executor,
                "job": row.job,
                "node": row.node,
                "restarts": row.restarts,
                "elapsed_seconds": row.seconds,
                "done": row.done,
                "total": row.total,
                "log": str(row.log) if row.log else None,
                "stuck": row.stuck,
                "restarted": list(row.restarted),
            }
            for row in rows
        ],
    }


def hours(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value >= 0.005 else f"{value * 3600:.1f} s"


def duration(seconds: int) -> str:
    minutes, rest = divmod(seconds, 60)
    whole, minutes = divmod(minutes, 60)
    return f"{whole}:{minutes:02d}:{rest:02d}"


def size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"
