"""Arguments and options that several commands share, and what their texts mean."""

from pathlib import Path
from typing import Annotated

import typer

from delt_hpc.config.class_range import OPTION as CLASSES
from delt_hpc.config.schema import STAGES, Config, Stage
from delt_hpc.errors import UserError

Source = Annotated[str, typer.Argument(metavar="CONFIG", help="A recipe's name, a YAML file, or a run folder.")]
Run = Annotated[Path | None, typer.Option("--run", help="The run folder.", show_default="runs/<name>")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a value, e.g. recover.lr=0.1; may be repeated."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors, but no progress.")]
Stages = Annotated[str | None, typer.Option("--stages", help="Only these stages, separated by commas.")]
Classes = Annotated[str | None, typer.Option(CLASSES, metavar="A-B", help="Only classes A to B, by index, inclusive.")]
ClassesList = Annotated[
    str | None,
    typer.Option(CLASSES, metavar="A-B,...", help="Only the stages rank and recover, and only these classes."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def run_folder_of(source: str, given: Path | None, config: Config) -> Path:
    """The run folder: the given one, else the source if that is a folder, else runs/<name>."""
    return given or (Path(source) if Path(source).is_dir() else Path("runs") / config.name)


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Read stage names separated by commas; the result is in pipeline order.

    Raises:
        UserError: a name is not a stage.
    """
    chosen = [part.strip() for part in text.split(",")]
    unknown = [part for part in chosen if part not in STAGES]
    if unknown:
        raise UserError(f"no stage `{unknown[0]}`", where=f"--stages {text}", expected=", ".join(STAGES))
    return tuple(stage for stage in STAGES if stage in chosen)
