"""The command `delt-hpc export`."""

from pathlib import Path
from typing import Annotated

import typer

from delt_hpc.config.options import Quiet
from delt_hpc.run import stop


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="imagefolder, huggingface or webdataset.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The new folder.", show_default="exports/<run>-<format>")
    ] = None,
    teacher: Annotated[bool, typer.Option("--teacher/--no-teacher", help="Include the teacher's weights.")] = True,
    labels: Annotated[
        int,
        typer.Option("--labels", metavar="K", min=0, max=100_000, help="Store soft labels for K views of each image."),
    ] = 0,
    quiet: Quiet = False,
) -> None:
    """Write the distilled set with card, teacher and training script, for use without this package."""
    from delt_hpc.export import images  # noqa: PLC0415  # imports torch
    from delt_hpc.export.export import export as write  # noqa: PLC0415
    from delt_hpc.run.progress import Reporter  # noqa: PLC0415

    target = out or Path("exports") / f"{run.resolve().name}-{to}"
    try:
        with stop.on_signal():
            write(run, target, images.parse(to), Reporter(quiet=quiet), with_teacher=teacher, views=labels)
    except stop.Interrupted as interrupted:
        typer.echo("stopped on request; nothing was written", err=True)
        raise typer.Exit(interrupted.exit_code) from None
    typer.echo(f"export: {target}")
