"""Accuracy class by class and what is confused with what, from the counts that every training of a student leaves."""

from collections.abc import Sequence

import numpy as np

from delt_hpc.data.index import ClassMap
from delt_hpc.errors import UserError
from delt_hpc.report import tables
from delt_hpc.report.accuracy import folder_of
from delt_hpc.report.content import ArmResult, ByClass, ClassResult, Confused, Missing
from delt_hpc.run.folder import RunFolder
from delt_hpc.training.confusion import COLUMNS, TABLE

MOST_CONFUSED = 10
_MAX_DRAWN = 100  # classes of a confusion matrix that can still be seen


def collect(
    run: RunFolder, results: Sequence[ArmResult], distilled: ArmResult | None, classes: ClassMap
) -> ByClass | Missing:
    """The students of `distilled`, beside the same student with the same labels on other images.

    Raises:
        UserError: a table of counts is damaged.
    """
    if not distilled:
        return Missing("No student has been trained on distilled images.")
    arms = [arm for arm in results if (arm.student, arm.labels) == (distilled.student, distilled.labels)]
    counted = {arm.images: counts for arm in arms if (counts := _counts(run, arm, len(classes))) is not None}
    if distilled.images not in counted:
        return Missing("The trainings were made by an earlier version, which did not count classes.")
    of_distilled = counted[distilled.images]
    confusion = _per_cent(of_distilled)
    accuracies = {images: _per_cent(counts).diagonal() for images, counts in counted.items()}
    seeds = len(distilled.trainings)
    return ByClass(
        student=distilled.student,
        labels=distilled.labels,
        shown=tuple(counted),
        seeds=seeds,
        classes=tuple(
            ClassResult(
                index=index,
                folder=classes.folders[index],
                name=classes.names[index],
                images=int(of_distilled[index].sum()) // seeds,
                accuracy={images: float(values[index]) for images, values in accuracies.items()},
            )
            for index in range(len(classes))
        ),
        confused=_most_confused(confusion, classes),
        confusion=tuple(map(tuple, confusion.tolist())) if len(classes) <= _MAX_DRAWN else None,
    )


def _counts(run: RunFolder, arm: ArmResult, classes: int) -> np.ndarray | None:
    """Images of each class (row) taken for each class (column), added up over the seeds; None if one has no counts."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    for training in arm.trainings:
        path = folder_of(run, training) / TABLE
        if not path.exists():
            return None
        table = tables.read(path, COLUMNS)
        rows, columns, images = (table[name].to_numpy() for name in COLUMNS)
        places = np.concatenate([rows, columns])
        if not (np.isfinite(images).all() and ((places >= 0) & (places < classes)).all()):
            raise UserError("is damaged", where=str(path), expected=f"counts for class indices below {classes}")
        np.add.at(counts, (rows.astype(np.int64), columns.astype(np.int64)), images.astype(np.int64))
    return counts


def _per_cent(counts: np.ndarray) -> np.ndarray:
    """Shares of each row; zeros for a class without validation images."""
    shares: np.ndarray = 100.0 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return shares


def _most_confused(confusion: np.ndarray, classes: ClassMap) -> tuple[Confused, ...]:
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0.0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]
    pairs = [divmod(int(place), len(classes)) for place in order]
    return tuple(
        Confused(classes.names[true], classes.names[predicted], float(wrong[true, predicted]))
        for true, predicted in pairs
        if wrong[true, predicted] > 0
    )
