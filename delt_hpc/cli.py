"""The command line. Heavy libraries are imported inside the commands that need them, so that help is quick."""

import errno
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from delt_hpc.bench.command import app as bench_app
from delt_hpc.clean.command import clean
from delt_hpc.comparison.command import compare
from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.options import Classes, Json, Quiet, Run, Set, Source, Stages, parse_stages, run_folder_of
from delt_hpc.config.schema import Config, Stage
from delt_hpc.errors import UserError
from delt_hpc.export.command import export
from delt_hpc.launch.commands import register
from delt_hpc.run import stop
from delt_hpc.run.allocator import keep_freed_memory
from delt_hpc.version import VERSION

# Errors of the file system that may come at any moment, and what to do. Files are never left half-written.
_DISK = {
    errno.ENOSPC: "free space on the disk",
    errno.EDQUOT: "free space within your quota",
    errno.EROFS: "give a run folder on a disk that can be written to (--run)",
    errno.EACCES: "give a run folder that you may write to (--run)",
    errno.ENOTDIR: "give a folder (--run)",
    errno.ENAMETOOLONG: "give shorter names",
    errno.ELOOP: "remove the link that leads to itself",
    errno.EIO: "check the disk",
    errno.ESTALE: "wait until the file server answers again",
}

app = typer.Typer(
    name="delt-hpc",
    help="Distil an image data set into a few synthetic images per class (DELT, arXiv 2411.19946).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.add_typer(bench_app, name="bench")

TrialId = Annotated[
    str | None, typer.Option("--trial", metavar="STUDENT-SEED-ARM", help="Only this one, e.g. resnet18-1-random-soft.")
]


@app.command()
def run(
    config: Source,
    run_folder: Run = None,
    overrides: Set = None,
    stages: Stages = None,
    quiet: Quiet = False,
) -> None:
    """Run all stages. Finished work is skipped, interrupted work resumes."""
    _execute(config, run_folder, overrides, quiet, parse_stages(stages) if stages is not None else None)


def _stage_command(stage: Stage, text: str) -> None:
    if stage in ("rank", "recover"):

        def with_classes(
            config: Source, run_folder: Run = None, overrides: Set = None, classes: Classes = None, quiet: Quiet = False
        ) -> None:
            _execute(config, run_folder, overrides, quiet, (stage,), classes)

        app.command(stage, help=text)(with_classes)
    elif stage == "evaluate":

        def with_trial(
            config: Source, run_folder: Run = None, overrides: Set = None, trial: TrialId = None, quiet: Quiet = False
        ) -> None:
            _execute(config, run_folder, overrides, quiet, (stage,), trial=trial)

        app.command(stage, help=text)(with_trial)
    else:

        def plain(config: Source, run_folder: Run = None, overrides: Set = None, quiet: Quiet = False) -> None:
            _execute(config, run_folder, overrides, quiet, (stage,))

        app.command(stage, help=text)(plain)


for _stage, _text in {
    "squeeze": "Stage 1: train the teacher, or load given weights.",
    "rank": "Stage 2: score every training image with the teacher.",
    "select": "Stage 3: select and copy images of every class.",
    "recover": "Stage 4: optimise the images, in rounds that start early or late.",
    "aggregate": "Stage 5: assemble and check the distilled data set.",
    "evaluate": "Stage 6: train students on it and on real images.",
    "report": "Stage 7: write a page with all results.",
}.items():
    _stage_command(_stage, _text)  # type: ignore[arg-type]


@app.command()
def warmup(config: Source, run_folder: Run = None, overrides: Set = None, classes: Classes = None) -> None:
    """Compile the kernels of recovery once for all tasks of this run, into compile-cache/ of its folder."""
    from delt_hpc.config.load import load_config  # noqa: PLC0415

    loaded = load_config(config, overrides or ())
    wanted = ClassRange.parse(classes) if classes is not None else None
    from delt_hpc.recovery import compile_cache  # noqa: PLC0415
    from delt_hpc.recovery.warmup import warmup as warm  # noqa: PLC0415
    from delt_hpc.run.folder import RunFolder  # noqa: PLC0415

    with compile_cache.private():
        done = warm(loaded, RunFolder(run_folder_of(config, run_folder, loaded)), wanted)
    start = "warm" if done.from_pack else "cold"
    typer.echo(f"first iteration after {done.first_seconds:.1f} s ({start}), all in {done.seconds:.1f} s")
    typer.echo(f"compiled kernels: {done.folder}")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A distilled data set.")],
    deep: Annotated[bool, typer.Option("--deep", help="Also decode every image.")] = False,
    as_json: Json = False,
) -> None:
    """Check that a distilled data set is complete and unchanged. Exit code 1 if not; every fault is listed."""
    from delt_hpc.distilled import manifest  # noqa: PLC0415

    found = manifest.problems(folder, deep=deep)
    images = len(manifest.read_manifest(folder))
    last = f"{folder}: {len(found)} faults" if found else f"{folder}: {images} images, no faults"
    facts = {"folder": str(folder), "images": images, "faults": found}
    typer.echo(json.dumps(facts, indent=2) if as_json else "\n".join([*found, last]))
    raise typer.Exit(1 if found else 0)


@app.command("config")
def show_config(config: Source, overrides: Set = None) -> None:
    """Print the resolved configuration: the method's preset, the recipe or file, and every default."""
    from delt_hpc.config.load import dump_config, load_config  # noqa: PLC0415

    typer.echo(dump_config(load_config(config, overrides or ())), nl=False)


@app.command()
def check(config: Source, overrides: Set = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Read every image of the data set once and list all problems. Exit code 1 if a run would stop at one."""
    from delt_hpc.config.load import load_config  # noqa: PLC0415

    loaded = load_config(config, overrides or ())
    from delt_hpc.data import check as checking  # noqa: PLC0415
    from delt_hpc.run.progress import Reporter  # noqa: PLC0415

    result = checking.check(loaded, Reporter(quiet=quiet))
    typer.echo(json.dumps(asdict(result), indent=2) if as_json else "\n".join(checking.lines(loaded, result)))
    raise typer.Exit(1 if result.errors else 0)


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the data set and of the run.")],
    data: Annotated[Path, typer.Option("--data", metavar="FOLDER", help="Folder with train/ and val/.")],
    out: Annotated[Path | None, typer.Option("--out", help="The file to write.", show_default="NAME.yaml")] = None,
    quiet: Quiet = False,
) -> None:
    """Look at a folder of your own images and write a configuration with settings that suit it."""
    target = out or Path(f"{name}.yaml")
    if target.exists():
        raise UserError("exists already", where=str(target), remedy="delete it, or give another file (--out)")
    from delt_hpc.config.load import load_config, parse_config  # noqa: PLC0415

    parse_config({"name": name}, "NAME")
    from delt_hpc.data import check as checking  # noqa: PLC0415
    from delt_hpc.data.proposal import propose  # noqa: PLC0415
    from delt_hpc.run.folder import write_text  # noqa: PLC0415
    from delt_hpc.run.progress import Reporter  # noqa: PLC0415

    proposal = propose(name, data.absolute(), Reporter(quiet=quiet))
    write_text(target, proposal.text)
    typer.echo("\n".join(checking.lines(load_config(str(target)), proposal.checked)))
    typer.echo(f"written: {target}; read it, then: delt-hpc run {target}")


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print the YAML of this recipe.")] = None, as_json: Json = False
) -> None:
    """List the recipes and methods, or print a recipe to save and edit."""
    from delt_hpc.config import methods  # noqa: PLC0415
    from delt_hpc.config import recipes as shipped  # noqa: PLC0415

    if name:
        typer.echo(json.dumps(shipped.load(name), indent=2) + "\n" if as_json else shipped.text(name), nl=False)
        return
    listed = shipped.names()
    if as_json:
        typer.echo(json.dumps([asdict(recipe) for recipe in listed], indent=2))
        return
    width = max(len(recipe.name) for recipe in listed)
    for recipe in listed:
        typer.echo(f"{recipe.name:{width}}  ipc {recipe.ipc:3}  {recipe.title}")
    typer.echo("\nmethods, for any of them (--set method=NAME):")
    for method in methods.names():
        typer.echo(f"{method:{width}}  {methods.load(method).citation}")


@app.command()
def datasets(as_json: Json = False) -> None:
    """List the registered data sets."""
    from delt_hpc.data.catalog.specs import SPECS  # noqa: PLC0415

    if as_json:
        typer.echo(json.dumps([spec.to_json() for spec in SPECS.values()], indent=2))
        return
    for spec in SPECS.values():
        typer.echo(
            f"{spec.name:15} {spec.classes:5} classes  {spec.size:3} px (from {spec.resize})"
            f"  default teacher {spec.teacher}"
        )


@app.command()
def models(
    teachers: Annotated[bool, typer.Option("--teachers", help="Only those that can be teachers.")] = False,
    as_json: Json = False,
) -> None:
    """List the networks. Others are named timm/NAME or package.module:function. Teachers need BatchNorm2d."""
    from delt_hpc.models import registry as networks  # noqa: PLC0415

    names = networks.teacher_names() if teachers else networks.names()
    if as_json:
        can_teach = set(networks.teacher_names())
        rows = [{"name": name, "can_be_teacher": name in can_teach} for name in names]
        typer.echo(json.dumps(rows, indent=2))
        return
    typer.echo("\n".join(names))


app.command()(compare)
app.command("export")(export)
app.command("clean")(clean)
register(app)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(VERSION)
        raise typer.Exit


def _execute(
    source: str,
    run_folder: Path | None,
    overrides: list[str] | None,
    quiet: bool,
    stages: tuple[Stage, ...] | None,
    classes: str | None = None,
    trial: str | None = None,
) -> None:
    from delt_hpc.config.load import load_config  # noqa: PLC0415
    from delt_hpc.training import trial as trials  # noqa: PLC0415

    config = load_config(source, overrides or ())
    root = run_folder_of(source, run_folder, config)
    wanted = ClassRange.parse(classes) if classes is not None else None
    only = trials.find(trial, config.evaluate) if trial is not None else None
    # Slow imports: after the configuration's errors are reported.
    from delt_hpc import pipeline  # noqa: PLC0415
    from delt_hpc.data.check import summary  # noqa: PLC0415
    from delt_hpc.run.progress import Reporter  # noqa: PLC0415

    try:
        context = pipeline.open_run(config, root, Reporter(quiet=quiet))
        with stop.on_signal():
            if stages is None:
                for line in summary(config, context.dataset):
                    context.reporter.say(line)
            pipeline.run_stages(context, stages or config.stages, wanted, only)
    except KeyboardInterrupt:  # typer would not pass it on to `main`
        typer.echo("stopped; the same command resumes", err=True)
        raise typer.Exit(130) from None
    except stop.Interrupted as interrupted:
        typer.echo("stopped on request; the same command resumes", err=True)
        raise typer.Exit(interrupted.exit_code) from None
    _conclude(config, root, stages or config.stages)


def _conclude(config: Config, root: Path, stages: tuple[Stage, ...]) -> None:
    """Print the result table and the path of the report."""
    if "report" not in stages:
        typer.echo(f"{', '.join(stages)}: done in {root}")
        return
    from delt_hpc.report import summary  # noqa: PLC0415

    typer.echo(summary.text(root / "report" / "report.json"))
    typer.echo(f"report: {root / 'report' / 'report.html'}")


def main() -> None:
    """Entry point. A user's error is one message and exit code 2."""
    keep_freed_memory()
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        sys.stderr.write(f"error: {error}\n  to do:    {_DISK[error.errno]}; then the same command resumes\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
