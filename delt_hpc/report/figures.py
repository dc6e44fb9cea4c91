"""The report's charts."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from delt_hpc.config.network_name import in_file_names
from delt_hpc.report import class_figures
from delt_hpc.report.content import ArmResult, Difference, LossCurve, Report, RoundCost, StudentCurve, TeacherCard
from delt_hpc.report.drawing import Chart, chart
from delt_hpc.report.palette import light

_LOG_ABOVE = 30.0  # a loss with a larger ratio of maximum to minimum is drawn on a logarithmic scale
TICK_STEPS = [1, 2, 5, 10]
HARD_LABELS_ALPHA = 0.45


def draw(report: Report) -> dict[str, list[Chart]]:
    """The charts of each section; sections without data have none."""
    teacher, recovery, costs = report.teacher, report.recovery, report.costs
    return {
        "accuracy": [
            *_accuracy(report.accuracy, report.students, teacher.val_accuracy if teacher else None),
            *_differences(report.differences),
        ],
        "classes": class_figures.draw(report.by_class) if report.by_class else [],
        "recovery": _recovery(recovery) if recovery else [],
        "costs": _rounds(costs.rounds) if costs and len(costs.rounds) > 1 else [],
        "teacher": _teacher(teacher) if teacher and teacher.epochs else [],
    }


def _accuracy(results: Sequence[ArmResult], curves: Sequence[StudentCurve], teacher: float | None) -> list[Chart]:
    """For each student a bar chart of final accuracies and the curves over epochs."""
    bars_note = "Top-1 at the last epoch, per cent. Whiskers: one standard deviation over seeds."
    curves_note = "Accuracy on the validation images over epochs, per cent. Bands: one standard deviation over seeds."
    charts = []
    for student in dict.fromkeys(result.student for result in results):
        arms = [result for result in results if result.student == student]
        student_curves = [curve for curve in curves if curve.student == student and curve.epochs]
        bars = partial(_bars, results=arms, teacher=teacher)
        charts.append(chart(f"accuracy-{in_file_names(student)}", f"Accuracy of {student}", bars_note, bars))
        if student_curves:
            charts.append(
                chart(
                    f"training-{in_file_names(student)}",
                    f"Training of {student}",
                    curves_note,
                    partial(_curves, curves=student_curves),
                )
            )
    return charts


def _bars(axes: Axes, results: Sequence[ArmResult], teacher: float | None) -> None:
    text, height = light("text"), 0.62 * min(1.0, len(results) / 4)
    for row, result in enumerate(results):
        final, alpha = result.final, HARD_LABELS_ALPHA if result.labels == "hard" else 1.0
        axes.barh(row, final.mean, height=height, color=light("card"), linewidth=0)  # hides the grid behind a faint bar
        axes.barh(row, final.mean, height=height, color=light(result.images), alpha=alpha, linewidth=0)
        if final.std is not None:
            axes.errorbar(final.mean, row, xerr=final.std, color=text, linewidth=1.1, capsize=3)
        inside = final.mean > 15
        ink = light("card") if inside and result.labels == "soft" else text
        axes.text(
            2.0 if inside else final.mean + (final.std or 0.0) + 2.0,
            row,
            f"{final.mean:.1f}",
            va="center",
            color=ink,
            weight="bold",
        )
    axes.set_yticks(range(len(results)), [f"{r.images}, {r.labels}" for r in results], color=text)
    axes.invert_yaxis()
    axes.set_xlim(0, 109)
    axes.set_xticks(range(0, 101, 20))
    axes.grid(visible=False, axis="y")
    if teacher is not None:
        axes.axvline(teacher, color=light("teacher"), linewidth=1.3, zorder=0.9)
        top = axes.get_xaxis_transform()
        axes.text(teacher, 1.01, "teacher", transform=top, ha="center", va="bottom", color=light("teacher"))


def _differences(differences: Sequence[Difference]) -> list[Chart]:
    shown = [difference for difference in differences if difference.points.half_width is not None]
    if not shown:
        return []
    note = "Points, with 95 % intervals over seeds. An interval that contains 0: not distinguishable."
    title = "Distilled images against others"
    return [chart("differences", title, note, partial(_intervals, differences=shown), 1.0 + 0.42 * len(shown))]


def _intervals(axes: Axes, differences: Sequence[Difference]) -> None:
    for row, difference in enumerate(differences):
        points, colour = difference.points, light(difference.base)
        axes.errorbar(points.mean, row, xerr=points.half_width, color=colour, linewidth=2, capsize=4, marker="o")
    several = len({difference.student for difference in differences}) > 1
    names = [f"{d.student}, " * several + f"against {d.base}, {d.labels}" for d in differences]
    axes.set_yticks(range(len(differences)), names, color=light("text"))
    axes.set_ylim(len(differences) - 0.5, -0.5)
    axes.axvline(0, color=light("muted"), linewidth=1.2, zorder=0.9)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("points")


def _curves(axes: Axes, curves: Sequence[StudentCurve]) -> None:
    for curve in curves:
        images, labels = curve.arm.rsplit("-", 1)
        mean = np.asarray(curve.mean)
        std = np.asarray([0.0 if value is None else value for value in curve.std])
        style = "-" if labels == "soft" else (0, (4, 2))
        axes.plot(curve.epochs, mean, color=light(images), linestyle=style, label=f"{images}, {labels}")
        axes.fill_between(curve.epochs, mean - std, mean + std, color=light(images), alpha=0.15, linewidth=0)
    axes.set_xlabel("epoch")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    columns = len(curves) if len(curves) <= 4 else 3
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        borderaxespad=0.3,
        ncols=columns,
        handlelength=1.4,
        columnspacing=1.2,
    )


def _recovery(curve: LossCurve) -> list[Chart]:
    note = "Mean over the batches; bold: running median within a round. Vertical lines: start of a round."
    parts = (
        ("loss", "Loss", curve.loss),
        ("cross-entropy", "Cross-entropy", curve.cross_entropy),
        ("bn-distance", "Distance to the BatchNorm statistics", curve.bn_loss),
    )
    losses = [chart(name, title, note, partial(_loss, curve=curve, values=values)) for name, title, values in parts]
    return [
        *losses,
        chart(
            "active-images",
            "Active images",
            "Images being optimised in a batch, mean over the batches.",
            partial(_active, curve=curve),
        ),
    ]


def _loss(axes: Axes, curve: LossCurve, values: Sequence[float]) -> None:
    _mark_rounds(axes, curve)
    shown, iterations = np.asarray(values), np.asarray(curve.iterations)
    axes.plot(iterations, shown, color=light("distilled"), linewidth=0.8, alpha=0.35)
    for first, end in pairwise((*curve.borders, curve.total)):
        inside = (iterations >= first) & (iterations < end)
        axes.plot(iterations[inside], running_median(shown[inside], len(shown) // 20), color=light("distilled"))
    finite = shown[np.isfinite(shown)]
    if len(finite) and finite.min() > 0 and finite.max() / finite.min() > _LOG_ABOVE:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _iterations(axes, curve)


def _active(axes: Axes, curve: LossCurve) -> None:
    _mark_rounds(axes, curve)
    axes.fill_between(curve.iterations, curve.active, step="post", color=light("active"), linewidth=0)
    axes.step(curve.iterations, curve.active, where="post", color=light("distilled"), linewidth=1.5)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True, steps=TICK_STEPS))
    _iterations(axes, curve)


def _iterations(axes: Axes, curve: LossCurve) -> None:
    axes.set_xlabel("iteration")
    axes.set_xlim(0, curve.total)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=TICK_STEPS))
    axes.grid(visible=False, axis="x")


def _mark_rounds(axes: Axes, curve: LossCurve) -> None:
    for border in curve.borders[1:]:
        axes.axvline(border, color=light("border"), linewidth=0.9, linestyle=(0, (2, 2)), zorder=0.9)


def _rounds(rounds: Sequence[RoundCost]) -> list[Chart]:
    indices = [cost.round for cost in rounds]
    seconds = [cost.seconds_per_batch for cost in rounds]
    rates = [cost.image_iterations_per_s or 0.0 for cost in rounds]
    return [
        chart(
            "round-seconds",
            "Time per round",
            "Seconds, mean over the batches.",
            partial(_columns, x=indices, y=seconds),
        ),
        chart(
            "round-throughput",
            "Throughput per round",
            "Image-iterations per second.",
            partial(_columns, x=indices, y=rates),
        ),
    ]


def _columns(axes: Axes, x: Sequence[int], y: Sequence[float]) -> None:
    axes.bar(x, y, width=0.66 * min(1.0, len(x) / 5), color=light("distilled"), linewidth=0)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, steps=TICK_STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(visible=False, axis="x")


def _teacher(card: TeacherCard) -> list[Chart]:
    parts = (
        ("teacher-accuracy", "Teacher: validation accuracy", "Per cent, over epochs.", card.accuracy),
        ("teacher-loss", "Teacher: training loss", "Over epochs.", card.train_loss),
    )
    return [
        chart(name, title, note, partial(_epochs, epochs=card.epochs, values=values))
        for name, title, note, values in parts
        if any(value is not None for value in values)
    ]


def _epochs(axes: Axes, epochs: Sequence[int], values: Sequence[float | None]) -> None:
    points = [(epoch, value) for epoch, value in zip(epochs, values, strict=True) if value is not None]
    axes.plot([epoch for epoch, _ in points], [value for _, value in points], color=light("teacher"))
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=TICK_STEPS))
    axes.margins(x=0.01)


def running_median(values: np.ndarray, width: int) -> np.ndarray:
    """Median over a centred window of `width` values (fewer at both ends), float64, as long as `values`."""
    half = width // 2
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])
