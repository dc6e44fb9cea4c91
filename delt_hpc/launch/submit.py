"""From what is missing to jobs: checks first, then Slurm by stages, each behind those whose results it reads."""

import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.load import dump_config, load_config
from delt_hpc.config.schema import STAGES, Config, Stage, identity
from delt_hpc.errors import UserError, some
from delt_hpc.launch import plan, queue, records, status
from delt_hpc.launch.executor import ScriptExecutor, SubmissionError, command, outside_any_job
from delt_hpc.launch.markers import Markers
from delt_hpc.launch.plan import Job
from delt_hpc.launch.profile import Profile, interpreter
from delt_hpc.launch.records import LaunchFolder, Submission
from delt_hpc.launch.script import COMPILED, Script, request_program, requeue_on_request, text
from delt_hpc.launch.status import Row
from delt_hpc.launch.work import Work
from delt_hpc.run.folder import RunFolder, check_stamp, differences, stage_folders, stage_identity, write_text


@dataclass(frozen=True)
class Order:
    """What is asked for.

    Attributes:
        cluster: the profile as it was named.
        classes: of the data set.
        stages: only these.
        only: only these class ranges, of rank and recover.
    """

    config: Config
    run: RunFolder
    profile: Profile
    cluster: str
    classes: int
    stages: tuple[Stage, ...] | None = None
    only: tuple[ClassRange, ...] = ()

    @property
    def folder(self) -> LaunchFolder:
        return LaunchFolder(self.run)

    @property
    def root(self) -> Path:
        return self.run.root.absolute()


def missing(order: Order, max_array_size: int) -> list[Job]:
    """The jobs of what the run lacks; nothing is looked at but its folder.

    Raises:
        UserError: a stage's input is neither finished nor among what is asked for.
    """
    markers = Markers(order.config, order.run, order.classes)
    done = {task for stage in order.config.stages for task in markers.done_tasks(stage)}
    return plan.jobs(
        order.config,
        order.profile,
        order.classes,
        done=done,
        stages=order.stages,
        only=order.only,
        max_array_size=max_array_size,
    )


def refuse_what_cannot_be(order: Order, jobs: Sequence[Job], rows: Sequence[Row], problem: str) -> None:
    """Live jobs own some of it, or something it needs is neither there nor on its way.

    Raises:
        SubmissionError: naming them.
    """
    if problem:
        raise SubmissionError(
            f"Slurm does not say which jobs of this run are live: {problem}", remedy="try again when it answers"
        )
    wanted = [task for job in jobs for task in job.tasks]
    live = [row for row in rows if row.state in status.LIVE]
    if live:
        _refuse_another_configuration(order)
    owned = [row for row in live if any(row.task.overlaps(task) for task in wanted)]
    if owned:
        raise SubmissionError(
            "live jobs own it:\n    "
            + "\n    ".join(f"{row.task.name}: {row.executor} {row.job} {row.word or row.state}" for row in owned[:20])
            + (f"\n    ... and {len(owned) - 20} more" if len(owned) > 20 else ""),
            where=str(order.run.root),
            remedy="wait (`delt-hpc status`), `delt-hpc cancel` them, or ask for the rest (--stages, --classes)",
        )
    coming = {job.stage for job in jobs} | {row.task.stage for row in live}
    markers = Markers(order.config, order.run, order.classes)
    for stage in dict.fromkeys(job.stage for job in jobs):
        absent = [s for s in plan.upstream(order.config, stage) if s not in coming and not markers.finished(s)]
        if absent:
            raise SubmissionError(
                f"{stage} needs {some(absent)}: neither finished nor submitted",
                where="--stages",
                remedy="submit it too, or leave out --stages and --classes",
            )


def _refuse_another_configuration(order: Order) -> None:
    """A task reads the run's configuration when it begins, so that must not change under those that wait."""
    before = load_config(str(order.run.root))
    found = [text for stage in STAGES for text in differences(identity(before, stage), identity(order.config, stage))]
    if found:
        raise SubmissionError(
            "live jobs were submitted with another configuration:\n    " + "\n    ".join(dict.fromkeys(found)),
            where=str(order.run.root),
            remedy="submit the run folder itself, `delt-hpc cancel` them, or give another run folder (--run)",
        )


def refuse_another_run(order: Order) -> None:
    """The folder was made by another configuration, or Slurm cannot write its logs there."""
    if "%" in str(order.root):
        raise UserError(
            "Slurm takes `%` for a pattern", where=str(order.root), remedy="give another run folder (--run)"
        )
    if order.run.dataset.exists():
        for stage, made in stage_folders(order.run):
            check_stamp(made, stage_identity(order.config, stage, order.run))


def prepare(order: Order) -> None:
    """Set the run folder up as far as it goes without the data set."""
    folder = order.folder
    for path in (folder.work, folder.jobs, folder.tasks, order.run.logs):
        path.mkdir(parents=True, exist_ok=True)
    if order.profile.contained:
        program = folder.programs / "scontrol"
        write_text(program, request_program(str(folder.work)))
        program.chmod(0o755)
    write_text(order.run.config, dump_config(order.config))


def script(order: Order, job: Job, elements: int | None, after: tuple[str, ...], work: str) -> str:
    """The sbatch script of a job."""
    folder, workdir, many = order.folder, str(Path.cwd()), f"{len(job.tasks)} tasks" if elements else "one task"
    root = order.config.data.root
    data = [] if root is None else [str(root.absolute())]
    return text(
        Script(
            stage=job.stage,
            title=(f"{order.config.name}: {job.stage}, {many}, {job.tasks[0].unit} to {job.tasks[-1].unit}",),
            name=job.name(order.config.name),
            command=work,
            signal="USR2",
            output=str(order.run.logs.absolute() / ("%x.%A_%a.out" if elements else "%x.%j.out")),
            workdir=workdir,
            array=elements,
            parallel=min(job.parallel, len(job.tasks)),
            after=after,
            folders=(str(order.root), workdir, *data),
            before=("export SUBMITIT_EXECUTOR=slurm",),
            compiled=shlex.quote(str(order.root / COMPILED)),
            after_command=requeue_on_request(str(folder.work)) if order.profile.contained else (),
        ),
        order.profile,
    )


def dry_run(order: Order, jobs: Sequence[Job]) -> list[str]:
    """The scripts that `to_slurm` would submit; a job that has no number yet is called by its stage."""
    found = []
    submitted: list[Stage] = []
    for job in jobs:
        after = tuple(f"<{s}>" for s in plan.upstream(order.config, job.stage) if s in submitted)
        count = len(job.tasks)
        found.append(
            script(order, job, count if count > 1 else None, after, command(_python(order), order.folder.work))
        )
        submitted.append(job.stage)
    return found


def to_slurm(order: Order, jobs: Sequence[Job], rows: Sequence[Row], say: Callable[[str], None]) -> list[Submission]:
    """Submit the jobs; each is on record as soon as it has a number.

    Args:
        rows: what is live already, which later stages wait for too.

    Raises:
        SubmissionError: Slurm refuses one; those before it stand.
    """
    ids: dict[Stage, list[str]] = {}
    for row in rows:
        if row.state in ("running", "pending") and row.executor == "slurm":
            ids.setdefault(row.task.stage, []).append(row.job.partition("_")[0])
    python, submitted = _python(order), []
    with outside_any_job():
        for job in jobs:
            after = tuple(dict.fromkeys(i for s in plan.upstream(order.config, job.stage) for i in ids.get(s, ())))
            entry = _submit(order, job, after, python)
            ids.setdefault(job.stage, []).append(entry.job)
            submitted.append(entry)
            say(f"{entry.job}: {job.name(order.config.name)}, {len(job.tasks)} task{'s' * (len(job.tasks) > 1)}")
    return submitted


def warnings(environment: Iterable[str] = os.environ) -> list[str]:
    """What in the environment of sbatch changes scripts without a word."""
    found = sorted(name for name in environment if name.startswith("SBATCH_"))
    return [f"{', '.join(found)}: set in this shell, and stronger than the scripts; unset them"] if found else []


def _submit(order: Order, job: Job, after: tuple[str, ...], python: str) -> Submission:
    folder, profile = order.folder, order.profile

    def render(work: str, elements: int | None) -> str:
        return script(order, job, elements, after, work)

    minutes = profile.resources(job.stage).minutes
    executor = ScriptExecutor(folder.work, render, python, minutes, profile.timeouts)
    patience = max(1, profile.signal_seconds // 2)
    works = [Work(str(order.root), task, order.classes, patience) for task in job.tasks]
    array = len(works) > 1
    handed = executor.submit_array(works)
    number = handed[0].job_id.partition("_")[0]
    entry = Submission(
        "slurm", order.cluster, platform.node(), records.now(), number, array, job.stage, job.tasks, order.classes
    )
    records.write_submission(folder, entry)
    return entry


def _python(order: Order) -> str:
    root = order.config.data.root
    folders = (str(order.root), str(Path.cwd()), *([] if root is None else [str(root.absolute())]))
    return interpreter(order.profile, folders, str(Path.cwd()), sys.executable)


def max_array_size(profile: Profile) -> int:
    """The cluster's, where there is one to ask; else Slurm's default."""
    if profile.max_array_size:
        return profile.max_array_size
    try:
        return queue.max_array_size()
    except queue.QueueError:
        return plan.DEFAULT_MAX_ARRAY_SIZE
