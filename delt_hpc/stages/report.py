"""Report: what was distilled, how well students learn from it and what it cost, as HTML, Markdown and JSON."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path

from delt_hpc.config.schema import Config
from delt_hpc.context import Context, StageFolder
from delt_hpc.data import bad_files
from delt_hpc.data.transforms import BadImageError
from delt_hpc.distilled import manifest
from delt_hpc.errors import UserError
from delt_hpc.models import teacher
from delt_hpc.ranking import selection
from delt_hpc.report import accuracy, diversity, figures, losses, page
from delt_hpc.report.collect import READ_BY, collect
from delt_hpc.report.content import Diversity, Missing, Report
from delt_hpc.report.drawing import Chart
from delt_hpc.report.samples import Pair, Picture, draw_strip, encode, read_pairs, read_pictures
from delt_hpc.run import checksums, timing
from delt_hpc.run.folder import (
    DONE,
    RunFolder,
    is_done,
    read_json,
    remove_leftovers,
    write_json,
    write_text,
    writing,
)
from delt_hpc.training import confusion
from delt_hpc.version import VERSION

PAGE, MARKDOWN, NUMBERS, FIGURES = "report.html", "report.md", "report.json", "figures"


def report(context: Context) -> Path:
    """Write report/ and return its page; nothing is written where the report is there and its inputs are the same.

    Raises:
        UserError: a file of the run folder is damaged.
    """
    run, target = context.run, context.run.report / PAGE
    stage = StageFolder(context, "report", run.report, stamped=False)
    inputs = fingerprints(context.config, run)
    if is_done(run.report) and _is_current(run, inputs):
        return target
    _require_unchanged(run)
    stage.start()
    remove_leftovers(run.report / FIGURES)
    pairs = read_pairs(run) if is_done(run.distilled) else []
    content = collect(context.config, run, context.dataset, pairs, _diversity(context, pairs))
    charts, pictures = figures.draw(content), _pictures(context, content)
    _write_figures(run, charts.values(), pictures, context.dataset.spec.size)
    write_text(run.report / MARKDOWN, page.markdown(content, charts))
    write_json(run.report / NUMBERS, content.to_json())
    write_text(target, page.html(content, charts, _encoded(pictures)))
    stage.finish({"inputs": inputs})
    stage.record("all", len(pairs))
    return target


def fingerprints(config: Config, run: RunFolder) -> dict[str, str]:
    """The inputs of the report: SHA-256 of the configuration, timing records, tables and markers that it reads."""
    records = timing.gather(run)
    shown = records[records["stage"] != "report"].to_csv(index=False)
    made = {"version": VERSION, "config": _sha256(config.model_dump_json().encode()), "timing": _sha256(shown.encode())}
    return made | {
        path.relative_to(run.root).as_posix(): _sha256(path.read_bytes()) for path in _files(run) if path.exists()
    }


def _files(run: RunFolder) -> Iterator[Path]:
    yield from (run.dataset, run.classes, run.index("train"), run.index("val"))
    for folder, names in (
        (run.teacher, ("teacher.json", "history.csv", DONE)),
        (run.selected, (selection.TABLE, DONE)),
        (run.distilled, (manifest.MANIFEST, DONE)),
    ):
        yield from (folder / name for name in names)
    yield from (run.rank / READ_BY, *bad_files.tables(run))
    for folder in losses.finished(run):
        yield from (folder / losses.CURVE, folder / DONE)
    for folder in accuracy.finished(run):
        yield from (folder / accuracy.RESULT, folder / accuracy.HISTORY, folder / confusion.TABLE, folder / DONE)


def _is_current(run: RunFolder, inputs: dict[str, str]) -> bool:
    return not checksums.faults(run.report) and read_json(run.report / DONE).get("inputs") == inputs


def _require_unchanged(run: RunFolder) -> None:
    """Check the finished files that the report reads.

    Raises:
        UserError: names those that were changed, and the stage that makes them again.
    """
    if is_done(run.teacher):
        names = [name for name in (teacher.CARD, teacher.HISTORY) if (run.teacher / name).exists()]
        checksums.require(run.teacher, "squeeze", names)
    if is_done(run.rank):
        checksums.require(run.rank, "rank")
    if is_done(run.selected):
        checksums.require(run.selected, "select")
    for folder in losses.finished(run):
        checksums.require(folder, "recover", [losses.CURVE])
    if is_done(run.distilled):
        checksums.require(run.distilled, "aggregate")
        manifest.require_images(run.distilled)
    for folder in accuracy.finished(run):
        checksums.require(folder, "evaluate")


def _diversity(context: Context, pairs: Sequence[Pair]) -> Diversity | Missing:
    if not pairs:
        return Missing("There are no distilled images to measure yet.", "aggregate")
    if len(pairs) == len({pair.class_index for pair in pairs}):
        return Missing("With one image per class there is nothing to compare.")
    if not is_done(context.run.teacher):
        return Missing("There is no teacher to measure with yet.", "squeeze")
    try:
        return diversity.measure(
            context.run, context.dataset, pairs, context.config.rank.batch_size, context.device,
            selection.spec_of(context.config, context.dataset.spec),
        )  # fmt: skip
    except UserError as error:
        return Missing(f"It could not be measured: {error.what}.")


def _pictures(context: Context, content: Report) -> dict[int, list[Picture]]:
    """The pictures of each sample class, by class index."""
    run, initial_spec = context.run, selection.spec_of(context.config, context.dataset.spec)
    try:
        return {sample.index: read_pictures(run, sample, initial_spec) for sample in content.samples}
    except BadImageError as error:
        raise UserError(
            f"unreadable image: {error}",
            where=str(run.distilled),
            remedy="`delt-hpc verify` names every damaged image",
        ) from None


def _encoded(pictures: dict[int, list[Picture]]) -> dict[int, list[tuple[bytes, bytes | None]]]:
    """Files of the distilled and the initial image of each picture."""
    return {
        index: [(encode(one.distilled), encode(one.initial) if one.initial else None) for one in of_class]
        for index, of_class in pictures.items()
    }


def _write_figures(
    run: RunFolder, sections: Iterable[Sequence[Chart]], pictures: dict[int, list[Picture]], size: int
) -> None:
    files = {chart.name: chart.png for charts in sections for chart in charts}
    for index, of_class in pictures.items():
        file = BytesIO()
        draw_strip(of_class, size).save(file, format="PNG", optimize=True)
        files[f"samples-{index:05d}"] = file.getvalue()
    for name, png in files.items():
        with writing(run.report / FIGURES / f"{name}.png") as target:
            target.write(png)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
