"""Timing records: each process appends a line per unit of work to a file of its own; `gather` makes one table."""

import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import pandas as pd
import torch

from delt_hpc.config.schema import Stage
from delt_hpc.run.folder import RunFolder, make_folder, write_csv, write_text

COLUMNS = (
    "stage", "unit", "round", "seconds", "images", "image_iterations", "image_iterations_per_s",
    "data_wait_s", "compile_s", "device", "peak_memory_mib", "started", "host", "task",
)  # fmt: skip


@dataclass(frozen=True)
class Record:
    """The cost of a unit of work.

    Attributes:
        unit: a class range, a batch, student-seed-arm, or images-seed of soft labels.
        round: the round of a recovery batch; None for other stages.
        seconds: wall-clock time.
        images: number of different images.
        image_iterations: images times passes over them.
        data_wait_s: seconds spent waiting for images.
        compile_s: seconds spent compiling.
    """

    stage: Stage
    unit: str
    seconds: float
    images: int
    image_iterations: int
    round: int | None = None
    data_wait_s: float = 0.0
    compile_s: float = 0.0


def record(run: RunFolder, entry: Record, device: torch.device) -> None:
    """Append the record to this process's own file in timing/."""
    rate = entry.image_iterations / entry.seconds if entry.seconds > 0 else 0.0
    line = asdict(entry) | {
        "image_iterations_per_s": rate,
        "device": device_name(device),
        "peak_memory_mib": peak_memory_mib(device),
        "started": datetime.fromtimestamp(time.time() - entry.seconds, UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "task": task_name(),
    }
    make_folder(run.timing)
    path = run.timing / f"{entry.stage}-{platform.node()}-{os.getpid()}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def gather(run: RunFolder) -> pd.DataFrame:
    """All records of the run as one table, in order of their start; also written to timing.csv.

    Work that was done twice, because a process was killed or files were lost, counts once: as it was done last.
    """
    rows = [
        row
        for path in sorted(run.timing.glob("*.jsonl"))
        for row in _lines(path.read_text(encoding="utf-8", errors="replace"))
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values("started", kind="stable")
    table = table.drop_duplicates(["stage", "unit", "round"], keep="last", ignore_index=True)
    table["round"] = table["round"].astype("Int64")
    write_csv(run.timing_table, lambda file: table.to_csv(file, index=False))
    return table


def copy(stage: Stage, source: RunFolder, target: RunFolder) -> None:
    """Copy the records of a stage to a run that shares its results."""
    rows = [
        row
        for path in sorted(source.timing.glob("*.jsonl"))
        for row in _lines(path.read_text(encoding="utf-8", errors="replace"))
        if row.get("stage") == stage
    ]
    write_text(target.timing / f"{stage}-shared.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory since the process started, MiB: that of the GPU if `device` is one, else the process's own."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource  # noqa: PLC0415 - POSIX only

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def task_name() -> str:
    """The Slurm job (with array index) that this process belongs to; empty without Slurm."""
    job, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{job}_{element}" if job else os.environ.get("SLURM_JOB_ID", "")


def _lines(text: str) -> list[dict[str, object]]:
    """The complete lines; a killed process may have left an incomplete last one."""
    rows = []
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
