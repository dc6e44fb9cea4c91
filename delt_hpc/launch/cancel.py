"""Which live tasks to cancel, and how: jobs of Slurm, processes of this machine, processes that cannot be seen."""

import signal
from collections.abc import Sequence

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.schema import Stage
from delt_hpc.launch import queue, records, status
from delt_hpc.launch.records import LaunchFolder
from delt_hpc.launch.status import Row


def live_rows(
    rows: Sequence[Row], stages: Sequence[Stage] | None = None, classes: Sequence[ClassRange] = ()
) -> list[Row]:
    """The live tasks of these stages and classes; all without a restriction."""
    return [
        row
        for row in rows
        if row.state in status.LIVE
        and (stages is None or row.task.stage in stages)
        and (not classes or any(row.task.classes and row.task.classes.overlaps(one) for one in classes))
    ]


def forget_rows(folder: LaunchFolder, rows: Sequence[Row]) -> list[Row]:
    """Record that the processes of tasks in the state `unknown` have ended. Returns these tasks."""
    unknown = [row for row in rows if row.state == "unknown" and row.executor != "slurm"]
    for row in unknown:
        records.append_event(folder, row.submitted or row.task, records.new_event("forgotten", row.job, row.restarts))
    return unknown


def cancel_rows(folder: LaunchFolder, rows: Sequence[Row]) -> list[Row]:
    """Cancel the tasks. Returns those that cannot be cancelled from here: processes that are not provably theirs.

    Cancelling is recorded as an event, because Slurm may forget a task that never started.

    Raises:
        QueueError: Slurm does not answer.
    """
    elsewhere = [row for row in rows if row.executor != "slurm" and not (row.process and row.process.alive())]
    here = [row for row in rows if row not in elsewhere]
    for row in here:
        records.append_event(folder, row.submitted or row.task, records.new_event("cancelled", row.job, row.restarts))
    jobs = [row.job for row in here if row.executor == "slurm"]
    if jobs:
        queue.cancel(list(dict.fromkeys(jobs)))
    for row in here:
        if row.executor != "slurm" and row.process:
            row.process.send(signal.SIGTERM)
    return elsewhere
