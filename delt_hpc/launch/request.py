"""What a command of the launcher works on: a run, and which of its stages and classes on which cluster."""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.load import load_config
from delt_hpc.config.options import parse_stages, run_folder_of
from delt_hpc.config.schema import Config, Stage
from delt_hpc.launch import profile as profiles
from delt_hpc.launch import queue, records
from delt_hpc.launch.containers import interpreter
from delt_hpc.launch.environment import visible_gpus
from delt_hpc.launch.markers import class_count
from delt_hpc.launch.plan import DEFAULT_MAX_ARRAY_SIZE, Task
from delt_hpc.launch.profile import Profile
from delt_hpc.launch.records import LaunchFolder
from delt_hpc.run.folder import RunFolder


@dataclass(frozen=True)
class OpenedRun:
    """A configuration, its run folder, and the number of classes of its data set."""

    config: Config
    run: RunFolder
    classes: int


@dataclass(frozen=True)
class Request:
    """What the user asks to submit.

    Attributes:
        cluster: the profile, as the user named it.
        classes: number of classes of the data set.
        stages: only these stages; None for all of the run.
        only: only these class ranges, and only rank and recover; empty for no restriction.
    """

    config: Config
    run: RunFolder
    profile: Profile
    cluster: str
    classes: int
    stages: tuple[Stage, ...] | None = None
    only: tuple[ClassRange, ...] = ()

    @property
    def folder(self) -> LaunchFolder:
        return LaunchFolder(self.run)

    def includes(self, task: Task) -> bool:
        """Whether the task is one of the requested stages and classes."""
        if self.only and not (task.classes and any(task.classes.overlaps(one) for one in self.only)):
            return False
        return self.stages is None or task.stage in self.stages

    @property
    def root(self) -> Path:
        return self.run.root.absolute()

    @property
    def shared_folders(self) -> tuple[str, ...]:
        """Folders that tasks read and write."""
        data = self.config.data.root
        return (str(self.root), str(Path.cwd()), *([] if data is None else [str(data.absolute())]))

    @property
    def python(self) -> str:
        """Shell text that starts Python in a task."""
        return interpreter(self.profile, self.shared_folders, str(Path.cwd()), sys.executable)


def open_run(source: str, run_folder: Path | None, overrides: Sequence[str] | None, count: int | None) -> OpenedRun:
    """Open a run; `count` is the number of classes, if the data set is not on this machine.

    After a first submission the number is known from its record.
    """
    config = load_config(source, overrides or ())
    run = RunFolder(run_folder_of(source, run_folder, config))
    if count is None and not run.classes.exists():
        submissions = records.submissions(LaunchFolder(run))
        count = submissions[-1].classes if submissions else None
    return OpenedRun(config, run, class_count(config, run, count))


def open_submitted(source: str, run_folder: Path | None) -> OpenedRun:
    """Open a run with the configuration in its folder, if there is one: it was submitted with that."""
    run = RunFolder(run_folder_of(source, run_folder, load_config(source)))
    return open_run(str(run.root) if run.config.exists() else source, run.root, None, None)


def request_of(
    opened: OpenedRun, cluster: str, stages: str | None, classes: str | None, processes: int | None = None
) -> Request:
    """The request that these options state.

    Args:
        processes: tasks at the same time on the cluster `local`; default: the number of GPUs, at least 1.

    Raises:
        UserError: an option is wrong.
    """
    if cluster == "local":
        profile = Profile(parallel=processes or max(1, len(visible_gpus())))
    else:
        profile = profiles.load(cluster)
    return Request(
        opened.config,
        opened.run,
        profile,
        cluster,
        opened.classes,
        parse_stages(stages) if stages is not None else None,
        ClassRange.parse_many(classes, opened.classes) if classes is not None else (),
    )


def warnings(environment: Iterable[str] = os.environ) -> list[str]:
    """Environment variables that silently override the scripts."""
    found = sorted(name for name in environment if name.startswith("SBATCH_"))
    return [f"{', '.join(found)}: set in this shell; overrides the scripts; unset it"] if found else []


def max_array_size(profile: Profile) -> int:
    """The largest number of tasks in a job array: of the profile, the cluster, or Slurm's default without a cluster."""
    if profile.max_array_size:
        return profile.max_array_size
    try:
        return queue.max_array_size()
    except queue.QueueError:
        return DEFAULT_MAX_ARRAY_SIZE
