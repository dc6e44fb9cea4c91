"""Writes a comparison: one HTML page, Markdown, a CSV of all numbers, and a chart of accuracy against cost."""

import csv
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from delt_hpc.comparison.result import Result
from delt_hpc.comparison.table import Row, rows
from delt_hpc.report import formats, palette
from delt_hpc.report.drawing import Chart, chart
from delt_hpc.report.paired import Interval, verdict
from delt_hpc.report.templates import environment
from delt_hpc.run.folder import write_csv, write_text, writing

HTML, MARKDOWN, TABLE = "compare.html", "compare.md", "compare.csv"
_MARKERS = "osD^vPX*<>"
_HERE = Path(__file__).parent
_STYLE = Path(palette.__file__).with_name("style.css")
_COLUMNS = (
    *("name", "images", "student", "seeds"),
    *("soft", "soft_low", "soft_high", "soft_best", "soft_ema", "hard", "hard_low", "hard_high"),
    *("over_random", "over_random_low", "over_random_high"),
    *("over_selected", "over_selected_low", "over_selected_high"),
    *("hard_over_random", "hard_over_random_low", "hard_over_random_high"),
    *("lrs", "ars", "diversity", "seconds_per_image", "image_iterations", "peak_memory_mib"),
)


def write(results: Sequence[Result], out: Path) -> Path:
    """Write the comparison of the results to the folder `out`; returns the page."""
    table = rows(results)
    students = list(dict.fromkeys(row.student for row in table))
    charts = {
        student: _chart(number, [row for row in table if row.student == student])
        for number, student in enumerate(students, start=1)
    }
    for drawn in charts.values():
        if drawn:
            with writing(out / f"{drawn.name}.png") as file:
                file.write(drawn.png)
    write_csv(
        out / TABLE, lambda file: csv.writer(file, lineterminator="\n").writerows([_COLUMNS, *map(_numbers, table)])
    )
    values = _values(results, table, charts)
    write_text(out / MARKDOWN, _environment(autoescape=False).get_template("compare.md.j2").render(values))
    style = Markup(palette.css() + _STYLE.read_text(encoding="utf-8"))
    write_text(out / HTML, _environment(autoescape=True).get_template("compare.html.j2").render(values, style=style))
    return out / HTML


def _numbers(row: Row) -> list[object]:
    """The cells of the CSV; empty where there is no number."""
    cells: list[object] = [row.name, row.images, row.student, row.soft.n if row.soft else None]
    cells += [*_cells(row.soft), row.best, row.ema, *_cells(row.hard)]
    cells += [*_cells(row.over_random), *_cells(row.over_selected), *_cells(row.hard_over_random)]
    return [*cells, row.lrs, row.ars, row.diversity, row.seconds_per_image, row.image_iterations, row.peak_memory_mib]


def _cells(value: Interval | None) -> tuple[float | None, float | None, float | None]:
    return (value.mean, value.low, value.high) if value else (None, None, None)


def _values(results: Sequence[Result], table: Sequence[Row], charts: dict[str, Chart | None]) -> dict[str, Any]:
    """What the templates show."""
    teachers = {result.teacher["checksum"] for result in results}
    return {
        "students": {student: [row for row in table if row.student == student] for student in charts},
        "charts": charts,
        "results": results,
        "data": results[0].data if results else {},
        "teacher": results[0].teacher if results else {},
        "teachers": len(teachers),
        "verdicts": {student: _verdicts(table, student) for student in charts},
        "hardware": sorted({result.hardware for result in results} - {""}),
        "versions": results[-1].versions if results else {},
        "dates": sorted({result.date[:10] for result in results if result.date}),
        "externals": {result.name: result.external for result in results if result.external},
    }


def _verdicts(table: Sequence[Row], student: str) -> list[tuple[str, str, str]]:
    """(row, against what, verdict) of all rows but random images."""
    return [
        (row.name, against, verdict(difference))
        for row in table
        if row.student == student and row.images != "random"
        for against, difference in (("random", row.over_random), ("selected", row.over_selected))
        if difference is not None
    ]


def _chart(number: int, table: Sequence[Row]) -> Chart | None:
    """Accuracy with soft labels against seconds an image; None without accuracies."""
    shown = [row for row in table if row.soft]
    if not shown:
        return None
    title, note = "Accuracy against cost", "Soft labels, last epoch, per cent; whiskers: 95 % intervals over seeds."
    return chart(f"compare-{number}", title, note, partial(_draw, shown=shown))


def _draw(axes: Axes, shown: Sequence[Row]) -> None:
    costs = [row.seconds_per_image or 0.0 for row in shown]
    for row, cost, marker in zip(shown, costs, cycle(_MARKERS), strict=False):
        assert row.soft
        axes.errorbar(
            cost,
            row.soft.mean,
            yerr=row.soft.half_width,
            color=palette.light("teacher" if row.images == "external" else row.images),
            marker=marker,
            linestyle="",
            elinewidth=1.1,
            capsize=3,
            label=row.name,
        )
    positive = [cost for cost in costs if cost > 0]
    if positive:  # real images cost nothing
        axes.set_xscale("symlog", linthresh=min(positive))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("seconds an image, selection and recovery")
    axes.margins(x=0.1, y=0.1)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7.5)


def text(out: Path) -> str:
    """The accuracies of the table for a terminal."""
    with (out / TABLE).open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    head = ("student", "images", "seeds", "soft", "against random", "hard")
    lines = [head, *((row["student"], row["name"], row["seeds"], *_texts(row)) for row in listed)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _texts(row: dict[str, str]) -> tuple[str, str, str]:
    def value(name: str, show: Callable[[Interval | None], str]) -> str:
        mean, low, high = (float(cell) if (cell := row[key]) else None for key in (name, f"{name}_low", f"{name}_high"))
        return show(None if mean is None else Interval(mean, low, high, 0))

    return value("soft", accuracy), value("over_random", difference), value("hard", accuracy)


def _environment(*, autoescape: bool) -> Environment:
    made = environment(_HERE, autoescape=autoescape)
    made.filters |= {"accuracy": accuracy, "difference": difference, "drawing": Markup}
    return made


def accuracy(value: Interval | None) -> str:
    """84.1 ± 1.2: the mean and half of its 95 % interval; a single seed has no interval"""
    if value is None:
        return formats.NONE
    return f"{value.mean:.1f}" if value.half_width is None else f"{value.mean:.1f} ± {value.half_width:.1f}"


def difference(value: Interval | None) -> str:
    """+2.7 ± 4.6"""
    if value is None:
        return formats.NONE
    return formats.signed(value.mean) + ("" if value.half_width is None else f" ± {value.half_width:.1f}")
