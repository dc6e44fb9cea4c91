"""What the commands are given, as the launcher understands it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from delt_hpc.config.load import load_config
from delt_hpc.config.schema import STAGES, Config, Stage
from delt_hpc.errors import UserError
from delt_hpc.launch import logs as logging
from delt_hpc.launch import markers, profile, records
from delt_hpc.launch import submit as submission
from delt_hpc.launch.plan import Range
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
    ranges = ranges_of(classes, opened.classes)
    return submission.Order(opened.config, opened.run, chosen, cluster, opened.classes, stages_of(stages), ranges)


def stages_of(text: str | None) -> tuple[Stage, ...] | None:
    if text is None:
        return None
    chosen = [part.strip() for part in text.split(",")]
    unknown = [part for part in chosen if part not in STAGES]
    if unknown:
        raise UserError(f"no stage `{unknown[0]}`", where=f"--stages {text}", expected=", ".join(STAGES))
    return tuple(stage for stage in STAGES if stage in chosen)


def ranges_of(text: str | None, count: int) -> tuple[Range, ...]:
    """`0-9,20,21-30` as ranges apart from one another, in order; `count` is how many classes there are."""
    found: list[Range] = []
    for part in text.split(",") if text is not None else ():
        one = logging.parse_range(part.strip())
        if one is None or one[0] > one[1]:
            raise UserError(
                "is no class range",
                where=f"--classes {text}",
                expected="A-B with A <= B, or a class; commas between",
            )
        if one[1] >= count:
            raise UserError(
                f"class {one[1]} is beyond the last one", where=f"--classes {text}", expected=f"0 to {count - 1}"
            )
        found.append(one)
    joined: list[Range] = []
    for first, last in sorted(found):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return tuple(joined)


def train_images_of(run: RunFolder) -> int | None:
    return int(read_json(run.dataset)["train_images"]) if run.dataset.exists() else None
