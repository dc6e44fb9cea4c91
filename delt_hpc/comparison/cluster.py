"""A comparison on a cluster: each call submits the runs that can start, and collects those that have finished."""

import json
from collections.abc import Sequence
from pathlib import Path

import typer

from delt_hpc.comparison import drive
from delt_hpc.comparison.plan import Entry
from delt_hpc.config.schema import Stage, identity
from delt_hpc.context import Context
from delt_hpc.launch import commands
from delt_hpc.launch.markers import Markers
from delt_hpc.run.progress import Reporter

# What another run may make for this one (`share`).
_SHARED: tuple[Stage, ...] = ("squeeze", "rank", "select", "recover", "aggregate")


def run(entries: Sequence[Entry], folder: Path, out: Path, cluster: str, reporter: Reporter) -> list[str]:
    """Submit what is missing, except for runs that will share results that other runs still have to make.

    The same call again collects what has finished and submits the next runs. On the cluster `local` one call does all.

    Args:
        folder, out: as in `drive.run`.
        cluster: a profile's name or file.

    Returns:
        The names of the runs that have not finished.

    Raises:
        UserError: a run cannot be made, or a result was made with another configuration.
        typer.Exit: a submission was refused, or a task failed.
    """
    while True:
        submitted, waiting = _submit(entries, folder, out, cluster, reporter)
        if not submitted or cluster != "local":
            if any(drive.result_file(entry, out).exists() for entry in entries):
                drive.write_page(entries, out)
            return [*submitted, *waiting]


def _submit(
    entries: Sequence[Entry], folder: Path, out: Path, cluster: str, reporter: Reporter
) -> tuple[list[str], list[str]]:
    """The names of the runs that were submitted, and of those that wait for others."""
    claimed: set[str] = set()
    submitted: list[str] = []
    waiting: list[str] = []
    for entry in drive.missing(entries, out):
        context = drive.prepare(entry, entries, folder, reporter)
        markers = Markers(entry.config, context.run, len(context.dataset.classes))
        unfinished = [stage for stage in entry.stages if not markers.finished(stage)]
        if not unfinished:
            drive.finish(context, entry, out)
            continue
        makes = {_key(context, entry, stage) for stage in unfinished if stage in _SHARED}
        if makes & claimed:
            waiting.append(entry.name)
            continue
        claimed |= makes
        submitted.append(entry.name)
        try:
            commands.submit(str(context.run.root), cluster, stages=",".join(entry.stages))
        except typer.Exit as ended:  # local processes were waited for
            if ended.exit_code:
                raise
    if waiting:
        reporter.say(f"{', '.join(waiting)}: waiting for results that other runs make; call again when they have ended")
    return submitted, waiting


def _key(context: Context, entry: Entry, stage: Stage) -> str:
    """Equal for runs in which the stage makes the same."""
    return json.dumps([stage, identity(entry.config, stage), context.dataset.train.fingerprint()], sort_keys=True)
