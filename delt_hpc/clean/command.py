"""The command `delt-hpc clean`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from delt_hpc.config.options import Json
from delt_hpc.config.schema import STAGES
from delt_hpc.errors import UserError, some
from delt_hpc.launch import request
from delt_hpc.launch import status as states
from delt_hpc.launch.show import size
from delt_hpc.run.folder import RunFolder
from delt_hpc.run.lock import all_locked


def clean(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove it; without this option it is only shown.")] = False,
    as_json: Json = False,
) -> None:
    """Show and remove what a run does not need: images that are also elsewhere, and files that can be made again."""
    if not RunFolder(run).config.is_file():
        raise UserError("is not a run folder", where=str(run), expected="a folder with config.yaml, made by a run")
    opened = request.open_submitted(str(run), None)
    _refuse_live_tasks(opened)
    from delt_hpc.clean import removal  # noqa: PLC0415  # imports torch

    with all_locked(opened.run.locks, STAGES):
        groups = removal.find(opened.config, opened.run)
        if yes:
            removal.remove(groups)
    rows = [{"what": group.what, "files": group.files, "bytes": group.bytes} for group in groups]
    if as_json:
        typer.echo(json.dumps({"run": str(run), "removed": yes, "groups": rows}, indent=2))
        return
    for group in groups:
        typer.echo(f"{group.files:9,} files  {size(group.bytes):>10}  {group.what}")
    total = f"{sum(group.files for group in groups):9,} files  {size(sum(group.bytes for group in groups)):>10}"
    if not groups:
        typer.echo(f"{run}: nothing to remove")
    elif yes:
        typer.echo(f"{total}  removed; keep distilled/ and the data set, which may have the only copies of images now")
    else:
        typer.echo(f"{total}  in all; nothing was removed: `delt-hpc clean {run} --yes` removes it")


def _refuse_live_tasks(opened: request.OpenedRun) -> None:
    rows, problem = states.read(opened.config, opened.run, opened.classes)
    live = [row.task.name for row in rows if row.state in states.LIVE]
    if live:
        raise UserError(
            f"{len(live)} task(s) run, wait, or are out of sight{f' ({problem})' if problem else ''}: {some(live, 5)}",
            where=str(opened.run.root),
            remedy="wait until they end, or cancel them: `delt-hpc cancel`",
        )
