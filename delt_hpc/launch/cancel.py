"""Stopping live tasks. What they have done stays; the same run goes on by the next submission."""

import os
import platform
import signal
from collections.abc import Sequence

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.schema import Stage
from delt_hpc.launch import queue, records
from delt_hpc.launch.plan import Task
from delt_hpc.launch.records import LaunchFolder
from delt_hpc.launch.status import Row


def chosen(rows: Sequence[Row], stages: Sequence[Stage] | None, ranges: Sequence[ClassRange]) -> list[Row]:
    """Live tasks of these stages that work on any of these classes; of all where no range is given."""
    return [
        row
        for row in rows
        if row.state in ("running", "pending")
        and (stages is None or row.task.stage in stages)
        and (not ranges or any(row.task.overlaps(Task(row.task.stage, one)) for one in ranges))
    ]


def cancel(folder: LaunchFolder, rows: Sequence[Row]) -> list[Row]:
    """Cancel what can be cancelled from here; returns what cannot: processes of other hosts.

    It goes on record, for Slurm may keep no trace of a task that had not begun.

    Raises:
        QueueError: Slurm does not answer.
    """
    left = [row for row in rows if row.executor != "slurm" and row.node and row.node != platform.node()]
    mine = [row for row in rows if row not in left]
    for row in mine:
        records.tell(folder, row.submitted or row.task, records.event("cancelled", row.job, row.restarts))
    jobs = [row.job for row in mine if row.executor == "slurm"]
    if jobs:
        queue.cancel(list(dict.fromkeys(jobs)))
    for row in mine:
        if row.executor != "slurm":
            os.kill(int(row.job), signal.SIGTERM)
    return left
