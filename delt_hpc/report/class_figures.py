"""The charts of the classes: accuracy of each, and the confusion matrix."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from delt_hpc.report.content import ByClass, ClassResult
from delt_hpc.report.drawing import Chart, chart
from delt_hpc.report.palette import light

_LEAST = 12  # both charts are as high as for so many classes, at least
_ROWS = 24  # classes of the accuracy chart, at most
_NUMBERED = 12  # up to so many classes, the cells of the matrix carry their numbers
_NAMED = 40  # up to so many classes, the matrix has their names
_LONGEST = 22  # characters of a class name
_VISIBLE = 0.5  # per cent; cells below it are left blank
_TEXT_TURNS = 55.0  # per cent from which a cell is dark enough for light text


def draw(found: ByClass) -> list[Chart]:
    rows = _shown(found.classes)
    left_out = "" if len(rows) == len(found.classes) else f" The {_ROWS // 2} lowest and highest on distilled images."
    charts = [
        chart(
            "class-accuracy",
            "Accuracy by class",
            f"Per cent, mean over seeds; {found.student}, {found.labels} labels.{left_out}",
            partial(_accuracies, rows=rows, shown=found.shown),
            1.1 + 0.27 * max(len(rows), _LEAST),
        )
    ]
    if found.confusion:
        charts.append(
            chart(
                "confusion",
                "Confusion",
                "Share of the images of a class (row) taken for each class (column), per cent; on distilled images.",
                partial(_matrix, shares=np.asarray(found.confusion), names=[row.name for row in found.classes]),
                1.1 + 0.27 * min(max(len(found.classes), _LEAST), _ROWS),
            )
        )
    return charts


def _shown(classes: Sequence[ClassResult]) -> list[ClassResult]:
    """All classes in their order, or the lowest and highest if there are many."""
    if len(classes) <= _ROWS:
        return list(classes)
    by_accuracy = sorted(classes, key=lambda row: -row.accuracy["distilled"])
    return [*by_accuracy[: _ROWS // 2], *by_accuracy[-(_ROWS // 2) :]]


def _accuracies(axes: Axes, rows: Sequence[ClassResult], shown: Sequence[str]) -> None:
    places = np.arange(len(rows))
    ends = np.array([[row.accuracy[images] for images in shown] for row in rows])
    axes.hlines(places, ends.min(1), ends.max(1), color=light("border"), linewidth=1.2)
    for images in reversed(shown):
        values = [row.accuracy[images] for row in rows]
        axes.plot(values, places, "o", color=light(images), markersize=6.5, label=images, clip_on=False)
    axes.set_yticks(places, [_short(row.name) for row in rows], color=light("text"))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(max(0.0, np.floor(ends.min() / 10) * 10 - 5), 100)
    axes.grid(visible=False, axis="y")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], labels[::-1], loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.3,
        ncols=len(shown), handletextpad=0.2, columnspacing=1.2,
    )  # fmt: skip


def _matrix(axes: Axes, shares: np.ndarray, names: Sequence[str]) -> None:
    """Cells are rectangles, so that on the page they take their colour from it, as every other line does."""
    count = len(shares)
    for row, column in zip(*np.nonzero(shares >= _VISIBLE), strict=True):
        share = shares[row, column]
        cell = Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=light("distilled"), linewidth=0)
        cell.set_alpha(0.08 + 0.92 * share / 100)
        axes.add_patch(cell)
        if count <= _NUMBERED:
            ink = light("card") if share > _TEXT_TURNS else light("text")
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=ink, fontsize=8.5)
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_xlabel("taken for")
    axes.tick_params(length=0)
    if count <= _NAMED:
        labels = [_short(name) for name in names]
        upright = max(map(len, labels)) > 2
        size = 9.5 if count <= _ROWS else 6
        axes.set_xticks(range(count), labels, color=light("text"), rotation=90 if upright else 0, fontsize=size)
        axes.set_yticks(range(count), labels, color=light("text"), fontsize=size)
    axes.set_xticks(np.arange(count - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(count - 1) + 0.5, minor=True)
    axes.tick_params(which="minor", length=0)
    axes.grid(visible=False)
    if count <= _ROWS:
        axes.grid(which="minor", color=light("line"), linewidth=0.6)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
