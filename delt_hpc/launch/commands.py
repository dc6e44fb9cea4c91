"""The launcher's commands. `register(app)` adds them to a typer application.

Exit codes: 0 done; 2 a mistake of the user's; `status` and waiting submissions: 3 running or pending, 4 failed or
lost, 5 not submitted, 7 Slurm does not answer; `submit`: 6 refused; 130, 143 stopped.
"""

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from delt_hpc.config.class_range import ClassRange
from delt_hpc.launch import cancel as cancelling
from delt_hpc.launch import doctor as site
from delt_hpc.launch import environment, estimate, figures, profile, progress, queue, records, show
from delt_hpc.launch import logs as logging
from delt_hpc.launch import plan as planning
from delt_hpc.launch import status as standing
from delt_hpc.launch import submit as submission
from delt_hpc.launch.arguments import (
    HERE,
    Opened,
    open_run,
    open_submitted,
    order_of,
    processes_here,
    stages_of,
    train_images_of,
)
from delt_hpc.launch.executor import SubmissionError
from delt_hpc.launch.records import LaunchFolder
from delt_hpc.run.stop import Interrupted

REFUSED = 6

Source = Annotated[str, typer.Argument(metavar="CONFIG", help="A recipe's name, a YAML file, or a run folder.")]
Run = Annotated[Path | None, typer.Option("--run", help="The run folder.", show_default="runs/<name>")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="section.key=value; may be repeated.")
]
Cluster = Annotated[str, typer.Option("--cluster", metavar="PROFILE", help="A profile's name or its YAML file.")]
Stages = Annotated[str | None, typer.Option("--stages", help="Only these stages, separated by commas.")]
Classes = Annotated[str | None, typer.Option("--classes", metavar="A-B,...", help="Only rank and recover, of these.")]
Count = Annotated[int | None, typer.Option("--classes-count", min=1, help="Classes of a data set that is not here.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON on standard output.")]


def plan(
    config: Source,
    cluster: Cluster = "generic-gpu",
    run_folder: Run = None,
    overrides: Set = None,
    stages: Stages = None,
    classes: Classes = None,
    classes_count: Count = None,
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="How many tasks run at a time.")] = None,
    train_images: Annotated[int | None, typer.Option(min=1, help="Training images of a data set not here.")] = None,
    measured: Annotated[
        list[Path] | None, typer.Option("--figures", help="Timing records to estimate by: a run folder or a file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what is missing, as tasks, and what it costs by measured speed."""
    opened = open_run(config, run_folder, overrides, classes_count)
    order = order_of(opened, cluster, stages, classes)
    jobs = submission.missing(order, submission.max_array_size(order.profile))
    images = train_images or train_images_of(opened.run)
    rates = figures.measured(opened.config, opened.run, measured or ())
    rows = estimate.rows(opened.config, order.profile, jobs, opened.classes, rates, slots=gpus, train_images=images)
    disk = estimate.disk(opened.config, opened.classes, rows, gpus)
    if as_json:
        typer.echo(json.dumps(show.plan_json(rows, disk), indent=2))
        return
    console = _console()
    if not rows:
        console.print("nothing is missing")
        return
    console.print(f"{opened.config.name}: {opened.classes} classes, profile {cluster}")
    show.plan(console, rows, disk, gpus)


def submit(
    config: Source,
    cluster: Annotated[
        str, typer.Option("--cluster", metavar="PROFILE", help="A profile's name or YAML file; `local` or `inline`.")
    ],
    run_folder: Run = None,
    overrides: Set = None,
    stages: Stages = None,
    classes: Classes = None,
    classes_count: Count = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the sbatch scripts, submit nothing.")] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="With `local`: tasks at a time.", show_default="one a GPU, or one")
    ] = None,
) -> None:
    """Submit what is missing; again means only what is missing then."""
    opened = open_run(config, run_folder, overrides, classes_count)
    processes = processes or (processes_here() if cluster == "local" else 1)
    order = order_of(opened, cluster, stages, classes, processes)
    if dry_run:
        jobs = submission.missing(order, submission.max_array_size(order.profile))
        typer.echo("\n".join(submission.dry_run(order, jobs)), nl=False)
        return
    for line in submission.warnings():
        typer.echo(f"warning: {line}", err=True)
    try:
        with records.exclusive(LaunchFolder(opened.run)):
            done = _submit(order, opened)
    except (SubmissionError, queue.QueueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(REFUSED) from None
    except (KeyboardInterrupt, Interrupted) as stop:  # here, for typer lets none through
        typer.echo("stopped; the same command goes on from here", err=True)
        raise typer.Exit(stop.exit_code if isinstance(stop, Interrupted) else 130) from None
    if cluster in HERE or done:
        raise typer.Exit(_conclude(opened))


def status(
    config: Source,
    run_folder: Run = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until nothing runs or waits.")] = False,
    every: Annotated[float, typer.Option(min=0.5, help="With --watch: seconds between two looks.")] = 10.0,
) -> None:
    """Show what became of every task. Exit code 0 done, 3 running, 4 failed, 5 not submitted, 7 Slurm is silent."""
    opened = open_submitted(config, run_folder)
    while True:
        rows, problem = standing.look(opened.config, opened.run, opened.classes)
        code = standing.exit_code(rows, problem)
        eta = progress.left(opened.config, opened.run, opened.classes, rows)
        if as_json:
            typer.echo(json.dumps(show.status_json(rows, eta, problem, code), indent=2))
        else:
            console = _console()
            if watch and console.is_terminal:
                console.clear()
            console.print(show.status(rows, eta, problem))
        live = any(row.state in ("running", "pending") for row in rows) or code == standing.NO_ANSWER
        if not watch or not live:
            raise typer.Exit(code)
        time.sleep(every)


def logs(
    config: Source,
    what: Annotated[str | None, typer.Argument(metavar="RANGE", help="A stage, classes A-B, or a task.")] = None,
    run_folder: Run = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they grow, until the tasks end.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Only of tasks that failed or are lost.")] = False,
) -> None:
    """Print the logs of tasks, of each its last turn."""
    opened = open_submitted(config, run_folder)

    def rows() -> list[standing.Row]:
        found, _ = standing.look(opened.config, opened.run, opened.classes)
        return logging.chosen(found, what, failed=failed)

    def paths() -> list[Path]:
        return [path for row in rows() for path in logging.files(row, opened.run.logs)]

    def ended() -> bool:
        return not follow or not any(row.state in standing.LIVE for row in rows())

    for line in logging.follow(paths, ended):
        typer.echo(line)


def cancel(
    config: Source,
    run_folder: Run = None,
    stages: Annotated[str | None, typer.Option("--stage", "--stages", help="Only these, separated by commas.")] = None,
    classes: Classes = None,
) -> None:
    """Cancel live tasks; what they have done stays, `submit` goes on from there."""
    opened = open_submitted(config, run_folder)
    rows, problem = standing.look(opened.config, opened.run, opened.classes)
    if problem:
        typer.echo(f"error: {problem}", err=True)
        raise typer.Exit(standing.NO_ANSWER)
    ranges = ClassRange.parse_many(classes, opened.classes) if classes is not None else ()
    chosen = cancelling.chosen(rows, stages_of(stages), ranges)
    try:
        left = cancelling.cancel(LaunchFolder(opened.run), chosen)
    except queue.QueueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(standing.NO_ANSWER) from None
    for row in chosen:
        typer.echo(f"{row.task.name}: {row.job} {f'is on {row.node}, cancel it there' if row in left else 'cancelled'}")
    if not chosen:
        typer.echo("nothing of it is live")
    raise typer.Exit(1 if left else 0)


def doctor(
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", metavar="PROFILE", help="A profile's name or its YAML file; without: this machine."),
    ] = None,
    folder: Annotated[Path, typer.Option("--folder", help="A folder on the disk that nodes share.")] = Path("runs"),
    job: Annotated[bool, typer.Option("--job/--no-job", help="Try a small job on a node too.")] = True,
    wait: Annotated[float, typer.Option(min=1, help="Seconds to wait for that job.")] = 300.0,
) -> None:
    """Check this environment, or a site and a profile; exit code 1 where something is an error."""
    if cluster is None:
        findings = environment.examine()
    else:
        findings = site.examine(profile.load(cluster), folder, job=job, wait=wait)
    worst = 0
    console = _console()
    for finding in findings:
        colour = {"OK": "green", "warning": "yellow", "error": "red"}[finding.level]
        console.print(f"[{colour}]{finding.level:7}[/] ", end="")
        console.print(finding.text, highlight=False, markup=False)
        if finding.remedy:
            console.print(f"        {finding.remedy}", highlight=False, markup=False)
        worst = max(worst, finding.level == "error")
    raise typer.Exit(int(worst))


def register(app: typer.Typer) -> None:
    """Add plan, submit, status, logs, cancel and doctor to the application."""
    for function in (plan, submit, status, logs, cancel, doctor):
        app.command()(function)


def _submit(order: submission.Order, opened: Opened) -> bool:
    """Submit or work off what is missing; True where nothing is."""
    here = order.cluster in HERE
    size = planning.DEFAULT_MAX_ARRAY_SIZE if here else order.profile.max_array_size or queue.max_array_size()
    submission.refuse_another_run(order)
    jobs = submission.missing(order, size)
    if not jobs:
        typer.echo("nothing is missing")
        return True
    rows, problem = standing.look(opened.config, opened.run, opened.classes)
    submission.refuse_what_cannot_be(order, jobs, rows, problem)
    submission.prepare(order)
    if not here:
        submission.to_slurm(order, jobs, rows, typer.echo)
        typer.echo(f"follow it with: delt-hpc status {opened.run.root}")
        return False
    from delt_hpc.launch import local  # noqa: PLC0415

    if order.cluster == "local":
        local.run_processes(order, jobs, order.profile.parallel, typer.echo)
    else:
        local.run_inline(order, jobs)
    return False


def _conclude(opened: Opened) -> int:
    """Where all tasks have ended: what became of them."""
    rows, problem = standing.look(opened.config, opened.run, opened.classes)
    typer.echo(show.summary(rows))
    for row in rows:
        if row.state in ("failed", "lost"):
            typer.echo(f"{row.task.name}: {row.state}: {row.word}; log: {row.log}", err=True)
    return standing.exit_code(rows, problem)


def _console() -> Console:
    """As wide as its content where it is no terminal, so that no column is cut in a file."""
    return Console() if Console().is_terminal else Console(width=200)
