"""The launcher's commands. `register(app)` adds them to a typer application.

Exit codes: 0 done; 2 a user's error; `submit`: 6 refused, 130 and 143 stopped; `status`, and `submit --cluster local`,
which waits for the tasks: 3 running or pending, 4 failed or lost, 5 stopped or not submitted, 7 Slurm does not
answer.
"""

import json
import time
from collections import Counter
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.options import ClassesList, Json, Run, Set, Source, Stages, parse_stages
from delt_hpc.errors import UserError
from delt_hpc.launch import cancel as canceling
from delt_hpc.launch import doctor as site
from delt_hpc.launch import downloads, environment, estimate, figures, modelled, profile, queue, records, show
from delt_hpc.launch import logs as logging
from delt_hpc.launch import plan as planning
from delt_hpc.launch import status as states
from delt_hpc.launch import submit as submission
from delt_hpc.launch.profile import Profile
from delt_hpc.launch.records import LaunchFolder
from delt_hpc.launch.request import OpenedRun, Request, max_array_size, open_run, open_submitted, request_of, warnings
from delt_hpc.run.folder import read_json
from delt_hpc.run.stop import EXIT_CODE, Interrupted

REFUSED = 6

_CLUSTER = "A profile (in ~/.config/delt-hpc/ or shipped) or its YAML file"
Count = Annotated[
    int | None, typer.Option("--classes-count", min=1, help="Number of classes, if the data set is not here.")
]


def plan(
    config: Source,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster", metavar="PROFILE", envvar="DELT_CLUSTER", help=f"{_CLUSTER}.", show_default="generic-gpu"
        ),
    ] = None,
    run_folder: Run = None,
    overrides: Set = None,
    stages: Stages = None,
    classes: ClassesList = None,
    classes_count: Count = None,
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="Tasks that run at the same time.")] = None,
    train_images: Annotated[
        int | None, typer.Option(min=1, help="Number of training images, if the data set is not here.")
    ] = None,
    measured: Annotated[
        list[Path] | None,
        typer.Option("--figures", help="Measured speeds: a run folder, or a table of bench."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the missing tasks and estimate their cost, from measured speed where there is one."""
    cluster = profile.chosen(cluster, "generic-gpu")
    opened = open_run(config, run_folder, overrides, classes_count)
    request = request_of(opened, cluster, stages, classes)
    jobs = submission.missing(request, max_array_size(request.profile))
    if train_images is None and opened.run.dataset.exists():
        train_images = int(read_json(opened.run.dataset)["train_images"])
    train_images = train_images or modelled.TRAIN_IMAGES.get(opened.config.data.name)
    rates = modelled.rates(opened.config, request.profile)
    rates |= figures.measured(opened.config, opened.run, request.profile, measured or ())
    rows = estimate.rows(
        opened.config, request.profile, jobs, opened.classes, rates, slots=gpus, train_images=train_images
    )
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
        str | None,
        typer.Option(
            "--cluster",
            metavar="PROFILE",
            envvar="DELT_CLUSTER",
            help=f"{_CLUSTER}; `local`: processes of this machine.",
            show_default="~/.config/delt-hpc/default.yaml",
        ),
    ] = None,
    run_folder: Run = None,
    overrides: Set = None,
    stages: Stages = None,
    classes: ClassesList = None,
    classes_count: Count = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the sbatch scripts; submit nothing.")] = False,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="With `local`: tasks at the same time.", show_default="number of GPUs, at least 1"),
    ] = None,
) -> None:
    """Submit all missing tasks as Slurm jobs, or run them as processes of this machine. Exit code 6: refused."""
    cluster = profile.chosen(cluster)
    opened = open_run(config, run_folder, overrides, classes_count)
    request = request_of(opened, cluster, stages, classes, processes)
    if dry_run:
        jobs = submission.missing(request, max_array_size(request.profile))
        if not jobs:
            typer.echo("nothing is missing")
            return
        typer.echo("\n".join(submission.dry_run(request, jobs)), nl=False)
        return
    for line in warnings():
        typer.echo(f"warning: {line}", err=True)
    try:
        with records.exclusive(LaunchFolder(opened.run)):
            submitted = _submit(request, opened)
    except (submission.SubmissionError, queue.QueueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(REFUSED) from None
    except (KeyboardInterrupt, Interrupted) as stopped:  # typer would hide them from `main`
        typer.echo("stopped; the same command resumes", err=True)
        raise typer.Exit(EXIT_CODE if isinstance(stopped, Interrupted) else 130) from None
    if not submitted:
        raise typer.Exit(_print_summary(request))


def status(
    config: Source,
    run_folder: Run = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until no task runs or waits.")] = False,
    every: Annotated[float, typer.Option(min=0.5, help="With --watch: seconds between updates.")] = 10.0,
) -> None:
    """Show the state of every task. Exit code 0: done, 3: running, 4: failed, 5: stopped, 7: no answer."""
    opened, ask = open_submitted(config, run_folder), queue.PatientQueue()
    while True:
        rows, problem = states.read(opened.config, opened.run, opened.classes, ask)
        code = states.exit_code(rows, problem)
        running = Counter(row.task.stage for row in rows if row.state == "running" and not row.task.warm_up)
        rates = figures.of_run(opened.run) if running else {}
        left = estimate.seconds_left(opened.config, opened.run, opened.classes, running, rates)
        speeds = estimate.speeds(opened.config, _site(opened), rates, running)
        if as_json:
            typer.echo(json.dumps(show.status_json(rows, left, problem, code) | {"speeds": speeds}, indent=2))
        else:
            console = _console()
            if watch and console.is_terminal:
                console.clear()
            console.print(show.status(rows, left, problem))
            console.print("\n".join(speeds), end="\n" if speeds else "", highlight=False)
        if not watch or not (states.may_change(rows) or code == states.NO_ANSWER):
            raise typer.Exit(code)
        time.sleep(every)


def logs(
    config: Source,
    what: Annotated[str | None, typer.Argument(metavar="RANGE", help="A stage, classes A-B, or a task.")] = None,
    run_folder: Run = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show new lines until the tasks end.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Only tasks that failed or are lost.")] = False,
    last: Annotated[
        int | None, typer.Option("--lines", "-n", min=0, help="Only the last lines of each log.", show_default="all")
    ] = None,
) -> None:
    """Show the logs of tasks."""
    opened, ask = open_submitted(config, run_folder), queue.PatientQueue()

    def rows() -> list[states.Row]:
        found, _ = states.read(opened.config, opened.run, opened.classes, ask)
        return logging.chosen(found, what, failed=failed)

    def paths() -> list[Path]:
        return [path for row in rows() for path in logging.files(row, opened.run.logs)]

    def ended() -> bool:
        return not follow or not any(row.state in states.LIVE for row in rows())

    for line in logging.follow(paths, ended, last):
        typer.echo(line)


def cancel(
    config: Source,
    run_folder: Run = None,
    stages: Annotated[
        str | None, typer.Option("--stages", "--stage", help="Only these stages, separated by commas.")
    ] = None,
    classes: ClassesList = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Regard processes that cannot be seen from here as ended; signal nothing.")
    ] = False,
) -> None:
    """Cancel live tasks. Their results and checkpoints stay, and `submit` resumes them."""
    opened = open_submitted(config, run_folder)
    rows, problem = states.read(opened.config, opened.run, opened.classes)
    if problem:
        typer.echo(f"error: {problem}", err=True)
        raise typer.Exit(states.NO_ANSWER)
    wanted = parse_stages(stages) if stages is not None else None
    ranges = ClassRange.parse_many(classes, opened.classes) if classes is not None else ()
    chosen = canceling.live_rows(rows, wanted, ranges)
    if forget:
        forgotten = canceling.forget_rows(LaunchFolder(opened.run), chosen)
        typer.echo("\n".join(f"{row.task.name}: {row.job} forgotten" for row in forgotten) or "nothing to forget")
        return
    try:
        elsewhere = canceling.cancel_rows(LaunchFolder(opened.run), chosen)
    except queue.QueueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(states.NO_ANSWER) from None
    for row in chosen:
        result = f"cannot be seen from here: {row.message}; --forget" if row in elsewhere else "cancelled"
        typer.echo(f"{row.task.name}: {row.job} {result}")
    if not chosen:
        typer.echo("no live tasks")
    raise typer.Exit(1 if elsewhere else 0)


def fetch(config: Source, run_folder: Run = None, overrides: Set = None, classes_count: Count = None) -> None:
    """Download what a run needs: data set and torchvision's weights. Jobs do not; `submit` does this by itself."""
    opened = open_run(config, run_folder, overrides, classes_count)
    downloads.fetch(opened)
    for finding in downloads.examine(opened):
        typer.echo(finding.text)


def doctor(
    config: Annotated[
        str | None,
        typer.Argument(metavar="[CONFIG]", help="Also check that what this run reads is here.", show_default=False),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", metavar="PROFILE", help=f"{_CLUSTER}; without it: check this machine."),
    ] = None,
    folder: Annotated[Path, typer.Option("--folder", help="A folder that nodes share.")] = Path("runs"),
    job: Annotated[bool, typer.Option("--job/--no-job", help="Also run a small job on a node.")] = True,
    wait: Annotated[float, typer.Option(min=1, help="Seconds to wait for that job.")] = 300.0,
    run_folder: Run = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Check this environment, or a cluster and a profile. Exit code 1 if there is an error."""
    if cluster is None:
        findings = environment.examine()
    else:
        findings = site.examine(profile.load(cluster), folder, job=job, wait=wait)
    if config is not None:
        findings = chain(downloads.examine(open_run(config, run_folder, overrides, None)), findings)
    if as_json:
        found = [asdict(finding) for finding in findings]
        typer.echo(json.dumps(found, indent=2))
        raise typer.Exit(int(any(finding["level"] == "error" for finding in found)))
    raise typer.Exit(int(show.findings(_console(), findings)))


def register(app: typer.Typer) -> None:
    """Add the launcher's commands to the application."""
    for function in (plan, submit, fetch, status, logs, cancel, doctor):
        app.command()(function)


def _submit(request: Request, opened: OpenedRun) -> bool:
    """Submit or run what is missing; True if jobs were submitted that run on."""
    local = request.cluster == "local"
    size = planning.DEFAULT_MAX_ARRAY_SIZE if local else request.profile.max_array_size or queue.max_array_size()
    submission.check_run_folder(request)
    jobs = submission.missing(request, size)
    if not jobs:
        typer.echo("nothing is missing")
        return False
    rows, problem = states.read(opened.config, opened.run, opened.classes)
    submission.check_conflicts(request, jobs, rows, problem)
    kept = submission.to_keep(request, rows) if not local else []
    jobs = submission.missing(request, size, kept)
    if downloads.fetch(opened):
        typer.echo("data set and weights are here")
    submission.prepare(request)
    if not local:
        submission.to_slurm(request, jobs, kept, typer.echo)
        if not jobs:
            typer.echo("live jobs work on all that is missing")
        typer.echo(f"follow it with: delt-hpc status {opened.run.root}")
        return True
    from delt_hpc.launch.local import run_processes  # noqa: PLC0415

    run_processes(request, jobs, request.profile.parallel, typer.echo)
    return False


def _site(opened: OpenedRun) -> Profile:
    """The profile of the last submission; the default values where it is `local` or gone."""
    submitted = records.submissions(LaunchFolder(opened.run))
    try:
        return profile.load(submitted[-1].cluster) if submitted else Profile()
    except UserError:
        return Profile()


def _print_summary(request: Request) -> int:
    """Print how the requested tasks ended; returns the exit code."""
    rows, problem = states.read(request.config, request.run, request.classes)
    rows = [row for row in rows if request.includes(row.task)]
    typer.echo(show.summary(rows))
    for row in rows:
        if row.state in ("failed", "lost", "stopped"):
            typer.echo(f"{row.task.name}: {row.state}: {row.message}; log: {row.log}", err=True)
    return states.exit_code(rows, problem)


def _console() -> Console:
    """Wide if it is not a terminal, so that no column is cut in a file."""
    return Console() if Console().is_terminal else Console(width=200)
