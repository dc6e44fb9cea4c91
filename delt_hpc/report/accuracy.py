"""Accuracy of the students: the results in evaluate/, averaged over seeds."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import get_args

from delt_hpc.config.network_name import in_file_names
from delt_hpc.config.schema import Arm, Config
from delt_hpc.errors import some
from delt_hpc.report import tables
from delt_hpc.report.content import ArmResult, Difference, Missing, Spread, StudentCurve, Training
from delt_hpc.report.paired import paired, verdict
from delt_hpc.run.folder import RunFolder, is_done

RESULT, HISTORY = "result.json", "history.csv"


def spread(values: Iterable[float]) -> Spread:
    """Mean and sample standard deviation of at least one value."""
    sample = list(values)
    return Spread(statistics.fmean(sample), statistics.stdev(sample) if len(sample) > 1 else None, len(sample))


def finished(run: RunFolder) -> list[Path]:
    """Folders of the finished trainings."""
    return sorted(folder for folder in run.evaluate.iterdir() if is_done(folder)) if run.evaluate.is_dir() else []


def trainings(run: RunFolder, config: Config) -> list[Training]:
    """Every finished training: students in the order of the configuration, arms in that of `Arm`, seeds ascending."""
    found = [_training(folder) for folder in finished(run)]
    students, arms = config.evaluate.students, get_args(Arm)
    return sorted(found, key=lambda t: (_place(t.student, students), t.student, _place(t.arm, arms), t.arm, t.seed))


def by_arm(trainings: Sequence[Training]) -> tuple[ArmResult, ...]:
    """One result per student and arm, in the order of the trainings."""
    groups: dict[tuple[str, str], list[Training]] = defaultdict(list)
    for training in trainings:
        groups[training.student, training.arm].append(training)
    return tuple(_result(group) for group in groups.values())


def differences(results: Sequence[ArmResult]) -> tuple[Difference, ...]:
    """Distilled images against all others, for each student and kind of labels that both were trained with."""
    found = []
    for distilled in (result for result in results if result.images == "distilled"):
        for base in results:
            comparable = (base.student, base.labels) == (distilled.student, distilled.labels)
            if base.images == "distilled" or not comparable:
                continue
            points = paired(_by_seed(distilled), _by_seed(base))
            if points:
                found.append(Difference(base.student, base.labels, base.images, points, verdict(points)))
    return tuple(found)


def _by_seed(result: ArmResult) -> dict[int, float]:
    return {training.seed: training.final for training in result.trainings}


def folder_of(run: RunFolder, training: Training) -> Path:
    return run.evaluate / f"{in_file_names(training.student)}-{training.seed}-{training.arm}"


def curves(run: RunFolder, trainings: Sequence[Training]) -> tuple[StudentCurve, ...]:
    """Validation accuracy over epochs, one curve per student and arm, averaged over the seeds validated at an epoch."""
    return tuple(_curve(run, result) for result in by_arm(trainings))


def missing(trainings: Sequence[Training], config: Config) -> Missing | None:
    """The configured trainings that are not finished, or None."""
    finished_ones = {(training.student, training.seed, training.arm) for training in trainings}
    evaluate = config.evaluate
    configured = [(s, seed, arm) for s in evaluate.students for arm in evaluate.arms for seed in evaluate.seeds]
    absent = [
        f"{in_file_names(student)}-{seed}-{arm}"
        for student, seed, arm in configured
        if (student, seed, arm) not in finished_ones
    ]
    if not absent:
        return None
    if not trainings:
        return Missing("No student has been trained yet.", "evaluate")
    return Missing(f"{len(absent)} of {len(configured)} trainings are not finished yet: {some(absent, 6)}.", "evaluate")


def _training(folder: Path) -> Training:
    return Training(**tables.record(folder / RESULT, [field.name for field in fields(Training)]))


def _place(item: str, order: Sequence[str]) -> int:
    return order.index(item) if item in order else len(order)


def _result(group: Sequence[Training]) -> ArmResult:
    first = group[0]
    ema = [training.ema for training in group if training.ema is not None]
    return ArmResult(
        student=first.student,
        arm=first.arm,
        images=first.images,
        labels=first.labels,
        final=spread(training.final for training in group),
        best=spread(training.best for training in group),
        ema=spread(ema) if ema else None,
        trainings=tuple(group),
    )


def _curve(run: RunFolder, result: ArmResult) -> StudentCurve:
    at: dict[int, list[float]] = defaultdict(list)
    for training in result.trainings:
        table = tables.read(folder_of(run, training) / HISTORY, ["epoch", "val_accuracy"]).dropna()
        for epoch, accuracy in zip(table["epoch"], table["val_accuracy"], strict=True):
            at[int(epoch)].append(float(accuracy))
    over_seeds = {epoch: spread(at[epoch]) for epoch in sorted(at)}
    return StudentCurve(
        student=result.student,
        arm=result.arm,
        n=len(result.trainings),
        epochs=tuple(over_seeds),
        mean=tuple(value.mean for value in over_seeds.values()),
        std=tuple(value.std for value in over_seeds.values()),
    )
