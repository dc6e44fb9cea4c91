"""A run: all checks before any work, then the stages in order."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.load import dump_config
from delt_hpc.config.schema import STAGES, Config, Stage
from delt_hpc.context import Context, choose_device
from delt_hpc.data import loader
from delt_hpc.data.catalog import sources
from delt_hpc.data.catalog.specs import SPECS, root_of
from delt_hpc.data.dataset import prepare
from delt_hpc.errors import UserError
from delt_hpc.keyed_random import digest
from delt_hpc.models import registry, torchvision_files, weights
from delt_hpc.recovery.blocks import check_blocks
from delt_hpc.run import checksums, stop, tracker
from delt_hpc.run.folder import (
    RunFolder,
    check_stamp,
    remove_leftovers,
    stage_folders,
    stage_identity,
    watch,
    write_text,
)
from delt_hpc.run.lock import locked
from delt_hpc.run.progress import Reporter
from delt_hpc.stages.aggregate import aggregate
from delt_hpc.stages.evaluate import evaluate
from delt_hpc.stages.rank import rank
from delt_hpc.stages.recover import recover
from delt_hpc.stages.report import report
from delt_hpc.stages.select import select
from delt_hpc.stages.squeeze import squeeze
from delt_hpc.training import soft_labels
from delt_hpc.training.trial import Trial

_LOCKS = 2**30  # of a stage: more than there are classes


def open_run(config: Config, root: Path, reporter: Reporter) -> Context:
    """Check everything that can be checked before work starts, and set up the run folder.

    Raises:
        UserError: the data set, a network or the run folder contradicts the configuration.
    """
    device = choose_device(config.machine)
    loader.check(config.machine.loader, device)
    tracker.check(config.machine.tracker)
    run = RunFolder(root)
    if root.exists() and not root.is_dir():
        raise UserError("is not a folder", where=str(root), remedy="give another run folder (--run)")
    dataset = prepare(config, run, reporter)
    classes, size = len(dataset.classes), dataset.spec.size
    teacher = config.teacher
    registry.check(teacher.model, classes, size, where="teacher.model", needs_batch_norm=True)
    check_blocks(config, classes, size)
    soft_labels.encoding(config.evaluate, classes)
    for student in config.evaluate.students:
        registry.check(student, classes, size, where="evaluate.students")
    if teacher.weights:
        weights.check_torchvision(teacher.model, teacher.weights, classes)
    for key, path in (("teacher.checkpoint", teacher.checkpoint), ("rank.csv", config.rank.csv)):
        if path and not path.is_file():
            raise UserError("there is no such file", where=f"{key}: {path}", remedy=f"correct {key}")
    for stage, folder in stage_folders(run):
        if not checksums.has_damaged_stamp(folder):
            check_stamp(folder, stage_identity(config, stage, run))
    text = dump_config(config)
    if not run.config.exists() or run.config.read_text(encoding="utf-8") != text:
        write_text(run.config, text)
    watch(run.root)
    for folder in (run.root, run.index("train").parent):
        remove_leftovers(folder)
    return Context(config, run, dataset, device, reporter)


def fetch(config: Config, run: RunFolder, classes: int) -> None:
    """Set up what the stages read, downloading what is not here: a registered data set, and torchvision's weights.

    Jobs on nodes download nothing. A data set in a folder that this machine does not see is left alone.

    Args:
        classes: number of classes of the data set.

    Raises:
        UserError: something cannot be had, saying which file belongs where.
    """
    data, root = config.data, root_of(config.data)
    if data.name in SPECS and (data.root is None or root.exists()):
        sources.provide(data.name, root, data.train, data.val)
    for member in _torchvision_weights(config, classes):
        torchvision_files.fetch(member, run.weights)


def not_fetched(config: Config, run: RunFolder, classes: int) -> list[Path]:
    """The files of torchvision's weights that `fetch` would download; they may also be put there by hand."""
    names = (torchvision_files.missing(member, run.weights) for member in _torchvision_weights(config, classes))
    return [run.weights / name for name in names if name]


def _torchvision_weights(config: Config, classes: int) -> list[Any]:
    chosen = config.teacher
    if chosen.source != "torchvision":
        return []
    assert chosen.weights
    return [weights.check_torchvision(chosen.model, chosen.weights, classes)]


def run_stages(
    context: Context, stages: Sequence[Stage], classes: ClassRange | None = None, trial: Trial | None = None
) -> None:
    """Run the stages in the pipeline's order; a finished one is skipped. Two processes never do the same work at once.

    Args:
        classes: the range that rank and recover work on; the other stages always work on all classes.
        trial: the only trial that evaluate works on; all trials unless given.

    Raises:
        Interrupted: a stop was requested; see `run.stop`.
    """
    for number, stage in enumerate(stage for stage in STAGES if stage in stages):
        if number:
            stop.check()

        def waits(stage: Stage = stage) -> None:
            context.reporter.say(f"{stage}: waiting for another process that works on this stage of the run")

        first, count = _lock_range(stage, classes, trial)
        with locked(context.run.locks / stage, first, count, waits):
            _run(context, stage, classes, trial)


def _lock_range(stage: Stage, classes: ClassRange | None, trial: Trial | None) -> tuple[int, int]:
    """The numbers of the stage's lock that stand for the work: classes, or a hash of the trial; all unless given."""
    if stage in ("rank", "recover") and classes:
        return classes.first, len(classes.indices)
    if stage == "evaluate" and trial:
        return int.from_bytes(digest(trial.id)[:4], "big") % _LOCKS, 1
    return 0, _LOCKS


def _run(context: Context, stage: Stage, classes: ClassRange | None, trial: Trial | None) -> None:
    if stage == "squeeze":
        squeeze(context)
    elif stage == "rank":
        rank(context, classes)
    elif stage == "select":
        select(context)
    elif stage == "recover":
        recover(context, classes)
    elif stage == "aggregate":
        aggregate(context)
    elif stage == "evaluate":
        evaluate(context, trial)
    else:
        report(context)
