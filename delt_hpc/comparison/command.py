"""The command `delt-hpc compare`. What is heavy is imported when the command runs, so that help is quick."""

from pathlib import Path
from typing import Annotated

import typer

from delt_hpc.config.load import load_config
from delt_hpc.config.options import Quiet, Set
from delt_hpc.errors import UserError, some
from delt_hpc.run import stop

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="CONFIG | RUN...",
        help="A recipe's name or YAML file: make the missing runs. Run folders or results (.json): only collect them.",
    ),
]
Methods = Annotated[str | None, typer.Option("--methods", help="Methods, separated by commas.")]
Seeds = Annotated[int | None, typer.Option("--seeds", min=1, help="Number of trainings of each student.")]
Sweep = Annotated[
    list[str] | None,
    typer.Option("--sweep", metavar="KEY=V1,V2", help="Also compare these values of an option; may be repeated."),
]
External = Annotated[
    list[str] | None,
    typer.Option("--external", metavar="NAME=FOLDER", help="Also compare another tool's distilled set."),
]
Plain = Annotated[
    bool, typer.Option("--without-augmentation", help="Also train without augmentation, which the score ARS needs.")
]
Runs = Annotated[
    Path | None, typer.Option("--run", help="Folder of the run folders.", show_default="runs/<name>-compare")
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Folder of the page and the results.", show_default="compare/ in --run")
]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster", metavar="PROFILE", help="Submit the runs as `submit` does; the same command again goes on."
    ),
]


def compare(
    sources: Sources,
    methods: Methods = None,
    seeds: Seeds = None,
    sweep: Sweep = None,
    external: External = None,
    without_augmentation: Plain = False,
    overrides: Set = None,
    run_folder: Runs = None,
    out: Out = None,
    cluster: Cluster = None,
    quiet: Quiet = False,
) -> None:
    """Compare methods with random and selected real images under one teacher and protocol; write one page."""
    makes = any(value for value in (methods, seeds, sweep, external, without_augmentation, overrides))
    if not makes and all(_is_finished(source) for source in sources):
        target = out or Path("runs") / "compare"
        from delt_hpc.comparison import drive  # noqa: PLC0415

        _conclude(drive.collect([Path(source) for source in sources], target))
        return
    if len(sources) > 1:
        others = [source for source in sources if not _is_finished(source)]
        raise UserError(
            f"several sources can only be collected{f'; not a run folder: {some(others)}' if others else ''}",
            where=" ".join(sources),
            expected="one configuration, or run folders and results (.json) without other options",
        )
    from delt_hpc.comparison import plan  # noqa: PLC0415

    entries = plan.entries(
        sources[0],
        overrides or (),
        [name.strip() for name in methods.split(",")] if methods is not None else None,
        seeds,
        sweep or (),
        dict(map(_external, external or ())),
        without_augmentation=without_augmentation,
    )
    root = run_folder or Path("runs") / f"{load_config(sources[0], overrides or ()).name}-compare"
    from delt_hpc.comparison import drive  # noqa: PLC0415
    from delt_hpc.run.progress import Reporter  # noqa: PLC0415

    target, reporter = out or root / "compare", Reporter(quiet=quiet)
    try:
        if cluster is not None:
            from delt_hpc.comparison import cluster as clusters  # noqa: PLC0415

            unfinished = clusters.run(entries, root, target, cluster, reporter)
            if unfinished:
                typer.echo(f"not finished: {', '.join(unfinished)}; the same command again goes on")
            if (target / "compare.html").exists():
                _conclude(target / "compare.html")
            return
        with stop.on_signal():
            page = drive.run(entries, root, target, reporter)
    except KeyboardInterrupt:  # typer would not pass it on to `main`
        typer.echo("stopped; the same command resumes", err=True)
        raise typer.Exit(130) from None
    except stop.Interrupted as interrupted:
        typer.echo("stopped on request; the same command resumes", err=True)
        raise typer.Exit(interrupted.exit_code) from None
    _conclude(page)


def _is_finished(source: str) -> bool:
    """Whether this is a run folder or a result, which is collected, rather than a configuration."""
    return Path(source).is_dir() or source.endswith(".json")


def _external(text: str) -> tuple[str, Path]:
    name, sign, folder = text.partition("=")
    if not sign or not folder:
        raise UserError("is not an external set", where=f"--external {text}", expected="NAME=FOLDER")
    return name, Path(folder).expanduser()


def _conclude(page: Path) -> None:
    from delt_hpc.comparison.page import text  # noqa: PLC0415

    typer.echo(text(page.parent))
    typer.echo(f"page: {page}")
