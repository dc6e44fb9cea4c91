"""Submitting and cancelling: the missing tasks, the checks, and one Slurm job or job array for each stage.

Of submitit only the pickles and the program that runs them in a job are used. Its executor cannot make these scripts by
its public parameters: it needs srun on this machine even for showing a script, quotes arguments of srun, so that
shell variables are not expanded, and always runs the command in the foreground, where the script of an Apptainer job
could not pass on signals.
"""

import os
import secrets
import shlex
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.load import dump_config, load_config
from delt_hpc.config.schema import STAGES, Stage, identity
from delt_hpc.errors import UserError, some
from delt_hpc.launch import plan, queue, records, status
from delt_hpc.launch.markers import Markers
from delt_hpc.launch.plan import Job
from delt_hpc.launch.profile import Profile
from delt_hpc.launch.records import LaunchFolder
from delt_hpc.launch.request import Request
from delt_hpc.launch.runner import TaskRunner
from delt_hpc.launch.script import COMPILED, Script, request_program, requeue_on_request, text
from delt_hpc.launch.status import Row
from delt_hpc.run.folder import check_stamp, differences, stage_folders, stage_identity, write_text


class SubmissionError(UserError):
    """The submission is refused, by the checks here or by Slurm."""


def missing(request: Request, max_array_size: int) -> list[Job]:
    """The jobs for all tasks whose results are not in the run folder.

    Raises:
        UserError: a requested class range cuts a recovery batch.
    """
    markers = Markers(request.config, request.run, request.classes)
    done = {task for stage in request.config.stages for task in markers.done_tasks(stage)}
    return plan.jobs(
        request.config,
        request.profile,
        request.classes,
        done=done,
        stages=request.stages,
        only=request.only,
        max_array_size=max_array_size,
    )


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
    """Refuse tasks that live jobs work on already, and stages whose inputs are neither finished nor submitted.

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
    wanted = [task for job in jobs for task in job.tasks]
    taken = [row for row in live if any(row.task.overlaps(task) for task in wanted)]
    if taken:
        lines = [f"{row.task.name}: {row.executor} {row.job} {row.message or row.state}" for row in taken[:20]]
        if len(taken) > 20:
            lines.append(f"... and {len(taken) - 20} more")
        raise SubmissionError(
            "live jobs work on it already:\n    " + "\n    ".join(lines),
            where=str(request.run.root),
            remedy="wait (`delt-hpc status`), `delt-hpc cancel` them, or submit the rest (--stages, --classes)",
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


def script(request: Request, job: Job, after: tuple[str, ...]) -> str:
    """The sbatch script of a job. `after`: ids of the jobs whose results it reads."""
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
            before=("export SUBMITIT_EXECUTOR=slurm",),
            notes_signals=True,
            compiled=shlex.quote(str(request.root / COMPILED)),
            after_command=requeue_on_request(str(folder.work)) if contained else (),
        ),
        request.profile,
    )


def dry_run(request: Request, jobs: Sequence[Job]) -> list[str]:
    """The scripts that `to_slurm` would submit, with <stage> in place of the id of a job of that stage."""
    stages = [job.stage for job in jobs]
    return [
        script(request, job, tuple(f"<{s}>" for s in plan.upstream(request.config, job.stage) if s in stages))
        for job in jobs
    ]


def to_slurm(request: Request, jobs: Sequence[Job], rows: Sequence[Row], say: Callable[[str], None]) -> None:
    """Submit the jobs. Each is recorded as soon as it has an id.

    Args:
        rows: the status of the run; later stages wait for its live jobs too.

    Raises:
        SubmissionError: Slurm refuses a job; those before it stay submitted.
    """
    ids: dict[Stage, list[str]] = {}
    for row in rows:
        if row.state in ("running", "pending") and row.executor == "slurm":
            ids.setdefault(row.task.stage, []).append(row.job.partition("_")[0])
    for job in jobs:
        after = tuple(dict.fromkeys(id_ for s in plan.upstream(request.config, job.stage) for id_ in ids.get(s, ())))
        id_ = _submit(request, job, after)
        ids.setdefault(job.stage, []).append(id_)
        say(f"{id_}: {job.name(request.config.name)}, {len(job.tasks)} task{'s' * (len(job.tasks) > 1)}")


def _submit(request: Request, job: Job, after: tuple[str, ...]) -> str:
    """Submit one job and record it; returns its id."""
    from submitit.core.utils import DelayedSubmission, JobPaths  # noqa: PLC0415

    folder, profile = request.folder.work, request.profile
    pickles = [folder / f"{secrets.token_hex(16)}.pkl" for _ in job.tasks]
    content = script(request, job, after)
    try:
        for task, path in zip(job.tasks, pickles, strict=True):
            gpu = profile.resources(job.stage).gpus > 0
            runner = TaskRunner(str(request.root), task, request.classes, gpu, max(1, profile.signal_seconds // 2))
            delayed = DelayedSubmission(runner)
            delayed.set_timeout(profile.resources(job.stage).minutes, profile.timeouts)
            delayed.dump(path)
        id_ = queue.submit(content)
        for position, path in enumerate(pickles):
            task_id = f"{id_}_{position}" if len(pickles) > 1 else id_
            path.rename(JobPaths(folder, task_id).submitted_pickle)
    except queue.QueueError as error:
        raise SubmissionError(
            f"Slurm refuses the job: {error}", remedy="`delt-hpc doctor` checks the profile on the cluster"
        ) from None
    finally:
        for path in pickles:
            path.unlink(missing_ok=True)
    records.record_submission(request.folder, "slurm", request.cluster, id_, job.tasks, request.classes)
    write_text(JobPaths(folder, id_).submission_file, content)
    return id_


def live_rows(
    rows: Sequence[Row], stages: Sequence[Stage] | None = None, classes: Sequence[ClassRange] = ()
) -> list[Row]:
    """The live tasks of these stages and classes; all without a restriction."""
    return [
        row
        for row in rows
        if row.state in status.LIVE
        and (stages is None or row.task.stage in stages)
        and (not classes or any(row.task.classes and row.task.classes.overlaps(one) for one in classes))
    ]


def forget_rows(folder: LaunchFolder, rows: Sequence[Row]) -> list[Row]:
    """Record that the processes of tasks in the state `unknown` have ended. Returns these tasks."""
    unknown = [row for row in rows if row.state == "unknown" and row.executor != "slurm"]
    for row in unknown:
        records.append_event(folder, row.submitted or row.task, records.new_event("forgotten", row.job, row.restarts))
    return unknown


def cancel_rows(folder: LaunchFolder, rows: Sequence[Row]) -> list[Row]:
    """Cancel the tasks. Returns those that cannot be cancelled from here: processes that are not provably theirs.

    Cancelling is recorded as an event, because Slurm may forget a task that never started.

    Raises:
        QueueError: Slurm does not answer.
    """
    elsewhere = [row for row in rows if row.executor != "slurm" and not (row.process and row.process.alive())]
    here = [row for row in rows if row not in elsewhere]
    for row in here:
        records.append_event(folder, row.submitted or row.task, records.new_event("cancelled", row.job, row.restarts))
    jobs = [row.job for row in here if row.executor == "slurm"]
    if jobs:
        queue.cancel(list(dict.fromkeys(jobs)))
    for row in here:
        if row.executor != "slurm" and row.process:
            row.process.send(signal.SIGTERM)
    return elsewhere


def warnings(environment: Iterable[str] = os.environ) -> list[str]:
    """Environment variables that silently override the scripts."""
    found = sorted(name for name in environment if name.startswith("SBATCH_"))
    return [f"{', '.join(found)}: set in this shell; overrides the scripts; unset it"] if found else []


def max_array_size(profile: Profile) -> int:
    """The largest number of tasks in a job array: of the profile, the cluster, or Slurm's default without a cluster."""
    if profile.max_array_size:
        return profile.max_array_size
    try:
        return queue.max_array_size()
    except queue.QueueError:
        return plan.DEFAULT_MAX_ARRAY_SIZE
