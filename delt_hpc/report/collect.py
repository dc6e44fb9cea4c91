"""Collects the content of the report from the run folder; parts that do not exist yet are listed as missing."""

import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from delt_hpc.config import methods
from delt_hpc.config.schema import Config
from delt_hpc.data import bad_files
from delt_hpc.data.dataset import Dataset
from delt_hpc.recovery.batches import plan
from delt_hpc.report import accuracy, by_class, costs, losses, method, tables
from delt_hpc.report.content import (
    ArmResult,
    Costs,
    Difference,
    Diversity,
    Headline,
    LeftOut,
    Missing,
    Report,
    TeacherCard,
)
from delt_hpc.report.links import links
from delt_hpc.report.samples import Pair, choose_samples
from delt_hpc.run import timing
from delt_hpc.run.folder import RunFolder, is_done, read_json
from delt_hpc.version import VERSION

CARD, HISTORY, READ_BY = "teacher.json", "history.csv", "read_by.json"
_CARD_KEYS = ("model", "source", "weights", "parameters", "bn_layers", "val_accuracy", "seconds", "device")
_PACKAGES = ("torch", "torchvision", "triton", "nvidia-dali-cuda130", "numpy", "pillow", "matplotlib")


def collect(
    config: Config, run: RunFolder, dataset: Dataset, pairs: Sequence[Pair], diversity: Diversity | Missing
) -> Report:
    """The report's content.

    Args:
        pairs: the distilled images; empty before `aggregate`.
        diversity: the measurement, or why there is none.

    Raises:
        UserError: a file of the run folder is damaged.
    """
    trainings = accuracy.trainings(run, config)
    results = accuracy.by_arm(trainings)
    differences = accuracy.differences(results)
    classes = by_class.collect(run, results, _distilled_arm(results), dataset.classes)
    batches = losses.finished(run)
    recovery = losses.average(batches, config.recover)
    spent = costs.add_up(timing.gather(run))
    teacher = _teacher(run)
    published = methods.load(config.method)
    missing = {
        "accuracy": accuracy.missing(trainings, config),
        "classes": classes if isinstance(classes, Missing) else None,
        "samples": None if pairs else Missing("There is no distilled data set yet.", "aggregate"),
        "recovery": _missing_batches(config, dataset, len(batches)),
        "costs": None if spent else Missing("There are no timing records."),
        "diversity": diversity if isinstance(diversity, Missing) else None,
        "teacher": None if teacher else Missing("There is no teacher yet.", "squeeze"),
    }
    return Report(
        headline=_headline(config, dataset, len(pairs), teacher, results, differences, spent),
        accuracy=results,
        differences=differences,
        students=accuracy.curves(run, trainings),
        by_class=None if isinstance(classes, Missing) else classes,
        samples=choose_samples(pairs, dataset.classes),
        recovery=recovery,
        costs=spent,
        diversity=diversity if isinstance(diversity, Diversity) else None,
        teacher=teacher,
        steps=method.steps(config, dataset.spec),
        reference=published.sentence,
        paper=published.paper,
        links=links(run),
        command=shlex.join(["delt-hpc", "run", str(run.config), "--run", f"{run.root}-again"]),
        read_by=_reader(run),
        left_out=_left_out(run),
        config=config.model_dump(mode="json"),
        versions=_versions(),
        missing={part: reason for part, reason in missing.items() if reason},
    )


def _reader(run: RunFolder) -> str | None:
    """The decoder of the images that were ranked, with its version."""
    path = run.rank / READ_BY
    return ", ".join(read_json(path).values()) if path.exists() else None


def _left_out(run: RunFolder) -> tuple[LeftOut, ...]:
    rows = bad_files.gather(run)[list(bad_files.COLUMNS)].itertuples(index=False, name=None)
    return tuple(LeftOut(*row) for row in rows)


def _headline(
    config: Config,
    dataset: Dataset,
    distilled: int,
    teacher: TeacherCard | None,
    results: Sequence[ArmResult],
    differences: Sequence[Difference],
    spent: Costs | None,
) -> Headline:
    images = distilled or config.select.ipc * len(dataset.classes)
    best = _distilled_arm(results)
    random = _random_arm(results, best)
    recover = [stage.seconds for stage in spent.stages if stage.stage == "recover"] if spent else []
    return Headline(
        run=config.name,
        method=config.method,
        data_set=dataset.spec.name,
        size=dataset.spec.size,
        classes=len(dataset.classes),
        ipc=config.select.ipc,
        images=images,
        train_images=len(dataset.train),
        val_images=len(dataset.val),
        ratio=len(dataset.train) / images,
        teacher=config.teacher.model,
        teacher_accuracy=teacher.val_accuracy if teacher else None,
        student=best.student if best else None,
        labels=best.labels if best else None,
        distilled=best.final if best else None,
        random=random.final if random else None,
        difference=_difference(differences, random),
        recover_seconds=recover[0] if recover else None,
    )


def _distilled_arm(results: Sequence[ArmResult]) -> ArmResult | None:
    """The first student's result on distilled images, with soft labels if there are any."""
    distilled = [result for result in results if result.images == "distilled"]
    of_first_student = [result for result in distilled if result.student == distilled[0].student]
    return next((result for labels in ("soft", "hard") for result in of_first_student if result.labels == labels), None)


def _difference(differences: Sequence[Difference], random: ArmResult | None) -> Difference | None:
    if not random:
        return None
    key = (random.student, random.images, random.labels)
    return next((found for found in differences if (found.student, found.base, found.labels) == key), None)


def _random_arm(results: Sequence[ArmResult], distilled: ArmResult | None) -> ArmResult | None:
    """The result of the same student, with the same labels, on random real images."""
    if not distilled:
        return None
    key = (distilled.student, "random", distilled.labels)
    return next((result for result in results if (result.student, result.images, result.labels) == key), None)


def _missing_batches(config: Config, dataset: Dataset, finished: int) -> Missing | None:
    if not config.recover.iterations:
        return Missing("Nothing was optimised (0 iterations): the distilled images are the initial images.")
    planned = len(plan(len(dataset.classes), config.select.ipc, config.recover))
    if finished >= planned:
        return None
    if not finished:
        return Missing("No batch has been recovered yet.", "recover")
    return Missing(f"{planned - finished} of {planned} batches are not recovered yet.", "recover")


def _teacher(run: RunFolder) -> TeacherCard | None:
    if not is_done(run.teacher):
        return None
    card = tables.record(run.teacher / CARD, _CARD_KEYS)
    history = None
    if (run.teacher / HISTORY).exists():
        history = tables.read(run.teacher / HISTORY, ["epoch", "train_loss", "val_accuracy"])
    return TeacherCard(
        **card,
        epochs=tuple(int(epoch) for epoch in history["epoch"]) if history is not None else (),
        train_loss=tables.numbers(history["train_loss"]) if history is not None else (),
        accuracy=tables.numbers(history["val_accuracy"]) if history is not None else (),
    )


def _versions() -> dict[str, str]:
    """Versions of this package and of the installed packages that results depend on."""
    found = {"delt-hpc": VERSION, "Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {"platform": platform.platform(terse=True)}
