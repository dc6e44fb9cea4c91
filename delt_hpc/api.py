"""The package in Python, described in docs/python.md; `delt_hpc` offers these functions without importing torch."""

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delt_hpc.config.load import load_config
from delt_hpc.config.options import run_folder_of
from delt_hpc.config.schema import Config, Stage
from delt_hpc.launch import request
from delt_hpc.launch import status as states
from delt_hpc.run import stop

if TYPE_CHECKING:
    from delt_hpc.distilled.dataset import DistilledDataset


def distil(
    config: str | Path | Config,
    folder: str | Path | None = None,
    overrides: Sequence[str] = (),
    stages: Sequence[Stage] | None = None,
    *,
    quiet: bool = True,
) -> Path:
    """Run all stages, as `delt-hpc run` does: finished work is skipped, interrupted work resumes.

    In the main thread, Ctrl-C and SIGTERM stop the work after its current step and save its state; the same call
    resumes it. A second Ctrl-C stops at once.

    Args:
        config: a recipe's name, a YAML file, a run folder, or a configuration.
        folder: the run folder; default: runs/<name>.
        overrides: strings `section.key=value`; not with a `Config`.
        stages: only these.
        quiet: print no progress on standard error.

    Returns:
        The run folder; distilled/ in it is the distilled data set, report/report.json has all results.

    Raises:
        UserError: the configuration or its data set is wrong.
        KeyboardInterrupt: the work stopped after Ctrl-C.
        SystemExit: the work stopped after SIGTERM; the exit code is 143.
    """
    given = Path(folder) if folder is not None else None
    if isinstance(config, Config):
        loaded, root = config, given or Path("runs") / config.name
    else:
        loaded = load_config(str(config), overrides)
        root = run_folder_of(str(config), given, loaded)
    from delt_hpc import pipeline  # noqa: PLC0415  # imports torch
    from delt_hpc.run.progress import Reporter  # noqa: PLC0415

    context = pipeline.open_run(loaded, root, Reporter(quiet=quiet))
    with _stopping_on_signal():
        pipeline.run_stages(context, loaded.stages if stages is None else stages)
    return root


def compare(
    config: str | Path,
    methods: Sequence[str] | None = None,
    folder: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    seeds: int | None = None,
    sweep: Sequence[str] = (),
    external: Mapping[str, str | Path] | None = None,
    without_augmentation: bool = False,
    quiet: bool = True,
) -> Path:
    """Compare methods with random and selected real images, as `delt-hpc compare` does.

    Args:
        config: a recipe's name, a YAML file, or a run folder.
        methods: default: the method of the configuration.
        folder: of the run folders and, in compare/, of the page; default: runs/<name>-compare.
        overrides: strings `section.key=value`.
        seeds: number of trainings of each student; default: those of the configuration.
        sweep: strings `section.key=value1,value2`.
        external: distilled sets of other tools, by name.
        without_augmentation: also train without augmentation, which ARS needs.

    Returns:
        The folder with compare.html, compare.md and compare.csv.

    Raises:
        UserError: the configuration, a method or an external set is wrong.
    """
    from delt_hpc.comparison import drive, plan  # noqa: PLC0415  # imports torch
    from delt_hpc.run.progress import Reporter  # noqa: PLC0415

    sets = {name: Path(path) for name, path in (external or {}).items()}
    entries = plan.entries(
        str(config), overrides, methods, seeds, sweep, sets, without_augmentation=without_augmentation
    )
    root = Path(folder) if folder else Path("runs") / f"{load_config(str(config), overrides).name}-compare"
    with _stopping_on_signal():
        return drive.run(entries, root, root / "compare", Reporter(quiet=quiet)).parent


@contextmanager
def _stopping_on_signal() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop the work between two steps, with Python's usual exceptions.

    Only the main thread can handle signals; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        with stop.on_signal():
            yield
    except stop.Interrupted as interrupted:
        if interrupted.exit_code == stop.EXIT_CODE:
            raise SystemExit(interrupted.exit_code) from None
        raise KeyboardInterrupt from None


def status(run: str | Path) -> list[states.Row]:
    """The state of every task of a run, submitted or not, in the order of the pipeline.

    Warns if Slurm does not answer; the states are then those of the files in the run folder.

    Args:
        run: a run folder.

    Raises:
        UserError: it is not a run folder.
    """
    opened = request.open_submitted(str(run), None)
    rows, problem = states.read(opened.config, opened.run, opened.classes)
    if problem:
        warnings.warn(problem, stacklevel=2)
    return rows


def load_distilled(folder: str | Path, transform: Callable[[Any], Any] | None = None) -> "DistilledDataset":
    """A distilled data set as a data set of torchvision, with `spec` (size, mean, std), `teacher()`, `soft_labels`.

    Args:
        folder: distilled/ of a run folder, or an export with `--to imagefolder`.
        transform: applied to each PIL image.

    Raises:
        UserError: the folder is not a distilled data set, or is damaged.
    """
    from delt_hpc.distilled.dataset import DistilledDataset  # noqa: PLC0415  # imports torch

    return DistilledDataset(Path(folder), transform)
