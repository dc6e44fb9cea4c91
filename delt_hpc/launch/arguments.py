"""What the commands are given, as the launcher understands it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.load import load_config
from delt_hpc.config.schema import STAGES, Config, Stage
from delt_hpc.errors import UserError
from delt_hpc.launch import markers, profile, records
from delt_hpc.launch import submit as submission
from delt_hpc.launch.records import LaunchFolder
from delt_hpc.run.folder import RunFolder, read_json

HERE = ("local", "inline")  # in place of a profile


@dataclass(frozen=True)
class Opened:
    """A configuration with its run folder and how many classes its data set has."""

    config: Config
    run: RunFolder
    classes: int


def open_run(source: str, run_folder: Path | None, overrides: Sequence[str] | None, count: int | None) -> Opened:
    """The configuration and its run folder; classes as planned where jobs were submitted already."""
    config = load_config(source, overrides or ())
    run = _run_of(source, run_folder, config)
    if count is None and not run.classes.exists():
        planned = records.submissions(LaunchFolder(run))
        count = planned[-1].classes if planned else None
    return Opened(config, run, markers.class_count(config, run, count))


def open_submitted(source: str, run_folder: Path | None) -> Opened:
    """The run as it was submitted: by the configuration in its folder, where there is one."""
    run = _run_of(source, run_folder, load_config(source))
    return open_run(str(run.root) if run.config.exists() else source, run.root, None, None)


def _run_of(source: str, run_folder: Path | None, config: Config) -> RunFolder:
    return RunFolder(run_folder or (Path(source) if Path(source).is_dir() else Path("runs") / config.name))


def processes_here() -> int:
    """As many as this machine has GPUs, at least one."""
    from delt_hpc.launch import local  # noqa: PLC0415

    return max(1, len(local.gpus()))


def order_of(
    opened: Opened, cluster: str, stages: str | None, classes: str | None, processes: int = 1
) -> submission.Order:
    chosen = profile.Profile(parallel=processes) if cluster in HERE else profile.load(cluster)
    ranges = ClassRange.parse_many(classes, opened.classes) if classes is not None else ()
    return submission.Order(opened.config, opened.run, chosen, cluster, opened.classes, stages_of(stages), ranges)


def stages_of(text: str | None) -> tuple[Stage, ...] | None:
    if text is None:
        return None
    chosen = [part.strip() for part in text.split(",")]
    unknown = [part for part in chosen if part not in STAGES]
    if unknown:
        raise UserError(f"no stage `{unknown[0]}`", where=f"--stages {text}", expected=", ".join(STAGES))
    return tuple(stage for stage in STAGES if stage in chosen)


def train_images_of(run: RunFolder) -> int | None:
    return int(read_json(run.dataset)["train_images"]) if run.dataset.exists() else None
