"""Submitting and cancelling: the missing tasks, the checks, and one Slurm job or job array for each stage.

Of submitit only the pickles and the program that runs them in a job are used. Its executor cannot make these scripts by
its public parameters: it needs srun on this machine even for showing a script, quotes arguments of srun, so that
shell variables are not expanded, and always runs the command in the foreground, where the script of an Apptainer job
could not pass on signals.
"""

import platform
import secrets
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.load import dump_config, load_config
from delt_hpc.config.schema import STAGES, Stage, identity
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.errors import UserError, some
from delt_hpc.launch import plan, queue, records, status
from delt_hpc.launch.containers import request_program, requeue_on_request
from delt_hpc.launch.markers import Markers
from delt_hpc.launch.plan import Job, Task
from delt_hpc.launch.records import Submission
from delt_hpc.launch.request import Request
from delt_hpc.launch.runner import TaskRunner
from delt_hpc.launch.script import (
    CACHE_VARIABLE,
    COMPILED,
    Script,
    place_task,
    requeue_if_killed,
    text,
)
from delt_hpc.launch.status import COMMENT, Row
from delt_hpc.run.folder import check_stamp, differences, stage_folders, stage_identity, write_text


class SubmissionError(UserError):
    """The submission is refused, by the checks here or by Slurm."""


def missing(request: Request, max_array_size: int, live: Sequence[Row] = ()) -> list[Job]:
    """The jobs for all tasks whose results are not in the run folder.

    Args:
        live: rows of tasks that jobs work on already; they are left out.

    Raises:
        UserError: a requested class range cuts a recovery batch.
    """
    markers = Markers(request.config, request.run, request.classes)
    done = {task for stage in request.config.stages for task in markers.done_tasks(stage)}
    local = request.cluster == "local"
    if local or CACHE_VARIABLE in request.profile.environment:  # compiled code comes from elsewhere
        done.add(plan.WARM_UP)
    for row in live:
        done |= {row.task} & {plan.WARM_UP}
        whole = plan.whole(request.config, row.task.stage, request.classes)
        done |= {task for task in whole if task.overlaps(row.task)}
    return plan.jobs(
        request.config,
        request.profile,
        request.classes,
        done=done,
        stages=request.stages,
        only=request.only,
        max_array_size=max_array_size,
    )


def to_keep(request: Request, rows: Sequence[Row]) -> list[Row]:
    """The rows of live tasks whose jobs stay as they are; cancels jobs that Slurm will never start.

    A running task whose inputs are missing is not kept: it will fail, and must be submitted again.
    """
    dead = [row for row in rows if row.stuck and "DependencyNeverSatisfied" in row.message]
    if dead:
        queue.cancel(sorted({row.job.partition("_")[0] for row in dead}))
    live = [row for row in rows if row.state in status.LIVE and row not in dead]
    markers = Markers(request.config, request.run, request.classes)
    waiting = {row.job for row in live if row.state == "pending"}
    started = {row.job.partition("_")[0] for row in live if row.job not in waiting}
    doomed = {row.task.stage for row in live if markers.missing_inputs(row.task.stage)}
    return [row for row in live if row.task.stage not in doomed or row.job.partition("_")[0] not in started]


def check_run_folder(request: Request) -> None:
    """Refuse a run folder that another configuration made, or whose path Slurm cannot use.

    Raises:
        UserError: saying which value differs.
    """
    if "%" in str(request.root):
        raise UserError(
            "Slurm cannot write logs to a path with `%`", where=str(request.root), remedy="give another folder (--run)"
        )
    if request.run.dataset.exists():
        for stage, folder in stage_folders(request.run):
            check_stamp(folder, stage_identity(request.config, stage, request.run))


def check_conflicts(request: Request, jobs: Sequence[Job], rows: Sequence[Row], problem: str) -> None:
    """Refuse what cannot be combined with live tasks, and stages whose inputs are neither finished nor submitted.

    Jobs of Slurm can wait for other jobs of Slurm only, so local processes must end first, and the other way round.

    Args:
        rows: the status of the run.
        problem: why the status of Slurm jobs is unknown; empty if it is known.

    Raises:
        SubmissionError: naming the tasks or stages.
    """
    if problem:
        raise SubmissionError(f"cannot see which jobs of this run are live: {problem}", remedy="try again later")
    live = [row for row in rows if row.state in status.LIVE]
    if live:
        _check_same_configuration(request)
    local = request.cluster == "local"
    other = [row for row in live if local or row.executor != "slurm"]
    if other:
        lines = [f"{row.task.name}: {row.executor} {row.job} {row.message or row.state}" for row in other]
        raise SubmissionError(
            "live jobs work on it already:\n    " + "\n    ".join(lines[:20]),
            where=str(request.run.root),
            remedy="wait (`delt-hpc status`), or `delt-hpc cancel` them",
        )
    coming = {job.stage for job in jobs} | {row.task.stage for row in live}
    markers = Markers(request.config, request.run, request.classes)
    for stage in dict.fromkeys(job.stage for job in jobs):
        absent = [s for s in plan.upstream(request.config, stage) if s not in coming and not markers.finished(s)]
        if absent:
            raise SubmissionError(
                f"{stage} needs {some(absent)}, which is neither finished nor submitted",
                where="--stages",
                remedy="submit it too, or leave out --stages and --classes",
            )


def _check_same_configuration(request: Request) -> None:
    """Tasks read the run's configuration when they start, so it must not change while some of them wait."""
    before = load_config(str(request.run.root))
    found = [line for stage in STAGES for line in differences(identity(before, stage), identity(request.config, stage))]
    if found:
        raise SubmissionError(
            "live jobs were submitted with another configuration:\n    " + "\n    ".join(dict.fromkeys(found)),
            where=str(request.run.root),
            remedy="submit the run folder itself, `delt-hpc cancel` the jobs, or give another run folder (--run)",
        )


def prepare(request: Request) -> None:
    """Create the folders and files that tasks need before they start."""
    folder = request.folder
    for path in (folder.work, folder.jobs, folder.tasks, request.run.logs):
        path.mkdir(parents=True, exist_ok=True)
    if request.profile.in_container:
        program = folder.programs / "scontrol"
        write_text(program, request_program(str(folder.work)))
        program.chmod(0o755)
    write_text(request.run.config, dump_config(request.config))


def command(python: str, folder: Path) -> str:
    """Shell text: submitit's program that runs the pickle of a job."""
    return f"{python} -u -m submitit.core._submit {shlex.quote(str(folder))}"


def script(request: Request, job: Job, after: str, token: str) -> str:
    """The sbatch script of a job.

    Args:
        after: the dependency on jobs whose results it reads.
        token: names the job's pickles, and identifies the job where its id is not known.
    """
    folder, count = request.folder, len(job.tasks)
    tasks = f"{count} tasks" if count > 1 else "one task"
    contained = request.profile.in_container
    return text(
        Script(
            stage=job.stage,
            title=(f"{request.config.name}: {job.stage}, {tasks}, {job.tasks[0].unit} to {job.tasks[-1].unit}",),
            name=job.name(request.config.name),
            command=command(request.python, folder.work),
            signal="USR2",
            exclude=tuple(records.nodes_without_gpu(folder)) if request.profile.resources(job.stage).gpus else (),
            output=str(request.run.logs.absolute() / ("%x.%A_%a.out" if count > 1 else "%x.%j.out")),
            workdir=str(Path.cwd()),
            array=count if count > 1 else None,
            parallel=min(job.parallel, count),
            after=after,
            folders=request.shared_folders,
            comment=f"{COMMENT}{token}",
            before=(*place_task(str(folder.work), token), "export SUBMITIT_EXECUTOR=slurm"),
            notes_signals=True,
            fallback=shlex.quote(str(folder.work)),
            compiled=shlex.quote(str(request.root / COMPILED)),
            after_command=(
                *(requeue_on_request(str(folder.work)) if contained else ()),
                *requeue_if_killed(str(folder.work), request.profile.retries),
            ),
        ),
        request.profile,
    )


def dry_run(request: Request, jobs: Sequence[Job]) -> list[str]:
    """The scripts that `to_slurm` would submit, with <stage> for the id of its job and TOKEN for a random word."""
    ids = {job.stage: [f"<{job.stage}>"] for job in jobs}
    warm_up = ["<warm-up>"] if any(job.tasks == (plan.WARM_UP,) for job in jobs) else []
    return [script(request, job, _after(request, job.stage, job, ids, {}, warm_up), "TOKEN") for job in jobs]


def to_slurm(request: Request, jobs: Sequence[Job], kept: Sequence[Row], say: Callable[[str], None]) -> None:
    """Submit the jobs, and let kept jobs that wait for results wait for the new jobs too.

    Args:
        kept: rows of live tasks whose jobs stay (`to_keep`).

    Raises:
        SubmissionError: Slurm refuses a job; those before it stay submitted.
    """
    old: dict[Stage, list[str]] = {}
    for row in kept:
        if row.task == plan.WARM_UP:
            continue
        base = row.job.partition("_")[0]
        if base not in old.setdefault(row.task.stage, []):
            old[row.task.stage].append(base)
    ids: dict[Stage, list[str]] = {}
    warm_up = [row.job for row in kept if row.task == plan.WARM_UP]
    for stage in request.config.stages:
        of_stage = [job for job in jobs if job.stage == stage]
        if set(ids).intersection(plan.upstream(request.config, stage)):
            for id_ in old.get(stage, ()):
                queue.set_dependency(id_, _after(request, stage, None, ids, old, warm_up))
                say(f"{id_}: {stage} waits for the new jobs too")
        for job in of_stage:
            shapes = _shapes(task for other in of_stage for task in other.tasks) if plan.WARM_UP in job.tasks else ()
            id_ = _submit(request, job, _after(request, stage, job, ids, old, warm_up), shapes)
            (warm_up if shapes else ids.setdefault(stage, [])).append(id_)
            say(f"{id_}: {job.name(request.config.name)}, {len(job.tasks)} task{'s' * (len(job.tasks) > 1)}")


def _after(
    request: Request,
    stage: Stage,
    job: Job | None,
    new: Mapping[Stage, Sequence[str]],
    old: Mapping[Stage, Sequence[str]],
    warm_up: Sequence[str],
) -> str:
    """Slurm's dependency of a job, of which None is one that waits already.

    Recover tasks wait for the end of the warm-up, successful or not. It needs no weights, so it waits for squeeze only
    where that finds image size and classes.
    """
    if job and job.tasks == (plan.WARM_UP,):
        known = request.config.data.name in SPECS or request.run.dataset.exists()
        return "" if known else _dependency(request, "rank", new, old)
    after = [_dependency(request, stage, new, old)]
    after += [f"afterany:{id_}" for id_ in warm_up if stage == "recover"]
    return ",".join(filter(None, after))


def _dependency(
    request: Request, stage: Stage, new: Mapping[Stage, Sequence[str]], old: Mapping[Stage, Sequence[str]]
) -> str:
    """Slurm's dependency of a job of the stage on the jobs of the stages whose results it reads.

    Args:
        new: ids of the jobs that are submitted now, by stage.
        old: ids of earlier jobs. Of these the end counts, not the success: some of their tasks may have failed already
            and be among the new jobs.
    """
    upstream = plan.upstream(request.config, stage)
    kinds = ((request.profile.dependency, new), ("afterany", old))
    found = [(kind, [id_ for earlier in upstream for id_ in ids.get(earlier, ())]) for kind, ids in kinds]
    return ",".join(":".join([kind, *names]) for kind, names in found if names)


def _shapes(tasks: Iterable[Task]) -> tuple[ClassRange, ...]:
    """A class range of each length that tasks have: the shapes of their passes depend on how many batches they hold."""
    return tuple({len(task.classes): task.classes for task in tasks if task.classes}.values())


def _submit(request: Request, job: Job, after: str, shapes: tuple[ClassRange, ...] = ()) -> str:
    """Submit one job and record it; returns its id."""
    from submitit.core.utils import DelayedSubmission  # noqa: PLC0415

    folder, profile, token = request.folder, request.profile, secrets.token_hex(8)
    for position, task in enumerate(job.tasks):
        gpu = profile.resources(job.stage).gpus > 0
        stop_seconds = max(1, profile.signal_seconds // 2)
        runner = TaskRunner(str(request.root), task, request.classes, gpu, stop_seconds, profile.retries, shapes)
        delayed = DelayedSubmission(runner)
        delayed.set_timeout(profile.resources(job.stage).minutes, profile.timeouts)
        delayed.dump(folder.work / f"{token}-{position}.pkl")
    content, name = script(request, job, after, token), job.name(request.config.name)
    write_text(folder.work / f"{token}.sbatch", content)
    intent = Submission(
        "slurm",
        request.cluster,
        platform.node(),
        records.now(),
        "",
        len(job.tasks) > 1,
        job.stage,
        job.tasks,
        request.classes,
        name=name,
        token=token,
    )
    path = records.write_submission(folder, intent)
    try:
        id_ = queue.submit(content)
    except queue.QueueRefusedError as error:
        path.unlink()
        raise SubmissionError(
            f"Slurm refuses the job: {error}", remedy="`delt-hpc doctor` checks the profile on the cluster"
        ) from None
    records.set_job(path, intent, id_)
    return id_
