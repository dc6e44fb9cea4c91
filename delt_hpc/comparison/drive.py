"""Makes the runs of a comparison that are missing, one after the other, and writes the page after each."""

from collections.abc import Sequence
from pathlib import Path

from delt_hpc import pipeline
from delt_hpc.comparison import external, page, result, share
from delt_hpc.comparison.plan import Entry
from delt_hpc.comparison.result import Result
from delt_hpc.context import Context
from delt_hpc.errors import UserError
from delt_hpc.report import diversity
from delt_hpc.report.collect import collect as content_of
from delt_hpc.report.content import Diversity, Missing
from delt_hpc.report.samples import read_pairs
from delt_hpc.run import stop
from delt_hpc.run.folder import RunFolder, is_done
from delt_hpc.run.progress import Reporter


def run(entries: Sequence[Entry], folder: Path, out: Path, reporter: Reporter) -> Path:
    """Make what is missing; the same call after an interruption goes on where it was.

    Args:
        folder: where the run folders are made.
        out: where the page and the result of each run (<name>.json) are written. A run whose result is there is
            finished, whether or not its folder is.

    Returns:
        The page.

    Raises:
        UserError: a run cannot be made, or a result was made with another configuration.
        Interrupted: a stop was requested.
    """
    left = missing(entries, out)
    for entry in left:
        if entry.external:
            prepare(entry, entries, folder, reporter)  # a set that does not fit is refused before any training
    for number, entry in enumerate(left, start=1):
        stop.check()
        reporter.say(f"compare {number}/{len(left)}: {entry.name}")
        context = prepare(entry, entries, folder, reporter)
        pipeline.run_stages(context, entry.stages)
        finish(context, entry, out)
        write_page(entries, out)
    return write_page(entries, out)


def missing(entries: Sequence[Entry], out: Path) -> list[Entry]:
    """The runs without a result.

    Raises:
        UserError: a result was made with another configuration, or of another external set.
    """
    return [entry for entry in entries if not result.is_current(result_file(entry, out), entry, _described(entry))]


def prepare(entry: Entry, entries: Sequence[Entry], folder: Path, reporter: Reporter) -> Context:
    """Set up the folder of a run, with the results of other runs that it would make too."""
    root = folder / entry.name
    others = [(RunFolder(folder / other.name), other.config) for other in entries if other.name != entry.name]
    share.share_data_set(RunFolder(root), entry.config, others)
    context = pipeline.open_run(entry.config, root, reporter)
    # Also with runs of other comparisons in the same folder.
    beside = [RunFolder(path) for path in sorted(folder.iterdir()) if (path / "config.yaml").exists()]
    for text in share.share_stages(context.run, entry.config, entry.stages, beside):
        reporter.say(text)
    if entry.external:
        external.place(context, entry.external)
    return context


def finish(context: Context, entry: Entry, out: Path) -> None:
    """Write the result of a finished run."""
    report = result.read_report(context.run.root) if "report" in entry.stages else _content(context)
    result.of_run(context.run.root, report, entry, _described(entry)).write(result_file(entry, out))


def collect(sources: Sequence[Path], out: Path) -> Path:
    """Write the page of finished runs: run folders with a report, and results of earlier comparisons (JSON).

    Raises:
        UserError: a run has no report, or a file is damaged.
    """
    found = [_collected(path) for path in sources]
    return page.write(found, out)


def _collected(path: Path) -> Result:
    return Result.read(path) if path.is_file() else result.of_run(path, result.read_report(path))


def write_page(entries: Sequence[Entry], out: Path) -> Path:
    """Write the page of the runs that have a result."""
    files = [result_file(entry, out) for entry in entries]
    return page.write([Result.read(path) for path in files if path.exists()], out)


def result_file(entry: Entry, out: Path) -> Path:
    """Where the result of a run is written."""
    return out / f"{entry.name}.json"


def _described(entry: Entry) -> str:
    return external.describe(entry.external) if entry.external else ""


def _content(context: Context) -> dict[str, object]:
    """What a report would hold."""
    run, config = context.run, context.config
    if not is_done(run.distilled):
        return content_of(config, run, context.dataset, [], Missing("There is no distilled set.")).to_json()
    measured: Diversity | Missing
    pairs = read_pairs(run)
    try:
        found = diversity.measure(run, context.dataset, pairs, config.rank.batch_size, context.device)
        measured = found if config.select.ipc > 1 else Missing("With one image per class there is nothing to compare.")
    except UserError as error:  # a teacher without a linear layer
        measured = Missing(f"It could not be measured: {error.what}.")
    return content_of(config, run, context.dataset, pairs, measured).to_json()
