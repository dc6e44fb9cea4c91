"""What every stage is given, and the folder that a stage fills."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.schema import Config, Machine, Stage
from delt_hpc.data import bad_files
from delt_hpc.data.bad_files import BadFile
from delt_hpc.data.dataset import Dataset
from delt_hpc.data.loader import LoaderConfig, ValidationSet, mostly_jpegs
from delt_hpc.errors import UserError, some
from delt_hpc.run import checksums, timing
from delt_hpc.run.checkpoint import DamagedCheckpointError, check_checkpoint
from delt_hpc.run.folder import (
    CHECKPOINT,
    RunFolder,
    check_resolved,
    check_stamp,
    is_done,
    mark_done,
    remove_leftovers,
    set_aside,
    stage_identity,
    stamp,
    stamp_resolved,
    writing_folder,
)
from delt_hpc.run.progress import Reporter
from delt_hpc.run.tracker import Trackers


@dataclass(frozen=True, eq=False)
class Context:
    """A run that was checked and set up (`pipeline.open_run`)."""

    config: Config
    run: RunFolder
    dataset: Dataset
    device: torch.device
    reporter: Reporter

    @property
    def loader_config(self) -> LoaderConfig:
        """How images are read."""
        machine = self.config.machine
        workers = min(8, len(os.sched_getaffinity(0))) if machine.workers is None else machine.workers
        return LoaderConfig(
            machine.loader, self.device, workers, machine.cache_mib, self.config.data.on_bad, self._jpegs
        )

    @cached_property
    def _jpegs(self) -> bool:
        return mostly_jpegs(self.dataset.train)

    def validation_set(self) -> ValidationSet:
        """The real validation images, on which teacher and students are measured."""
        return ValidationSet(self.dataset.val, self.dataset.spec, 256, self.loader_config)

    @cached_property
    def trackers(self) -> Trackers:
        """Where the values of trainings and recovery are also sent."""
        config = self.config.model_dump(mode="json")
        return Trackers(self.config.machine.tracker, self.run.tracking, config, self.reporter.say)

    def class_range(self, classes: ClassRange | None) -> ClassRange:
        """The classes to work on; all classes unless a range is given.

        Raises:
            UserError: the range ends beyond the last class.
        """
        count = len(self.dataset.classes)
        return (classes or ClassRange(0, count - 1)).within(count)


class StageFolder:
    """The folder of a stage, or of one unit of a stage: stamped before the work, marked as done after it.

    A stage creates it, returns if it is `done`, calls `start`, works, and calls `finish`. A stage whose folder must
    appear complete or not at all works inside `whole` instead of between `start` and `finish`.
    """

    def __init__(self, context: Context, stage: Stage, path: Path, *, stamped: bool = True) -> None:
        """Changes nothing on disk.

        Args:
            stamped: does the folder carry a stamp of its own?

        Raises:
            UserError: another configuration made the folder.
        """
        self.path, self._context, self._stage = path, context, stage
        self._identity = stage_identity(context.config, stage, context.run) if stamped else None
        if self._identity is not None and not checksums.has_damaged_stamp(path):
            check_stamp(path, self._identity)
        self._began = time.perf_counter()

    def done(self) -> bool:
        """Whether the work is finished. Finished work with lost or changed files is moved aside: not finished."""
        if not is_done(self.path):
            return False
        faults = checksums.faults(self.path, outside=False)
        if faults:
            self.set_aside(faults)
            return False
        self.checkpoint.unlink(missing_ok=True)  # left there by a kill between the marker and its deletion
        return True

    def set_aside(self, faults: Sequence[str]) -> None:
        """Move the broken folder to broken/ and say why; the work is then done again."""
        target = set_aside(self._context.run, self.path)
        self._context.reporter.say(
            f"{self._stage}: {self.path} was finished, but is broken, so it is made again;"
            f" the broken one is now {target}\n    " + some(faults)
        )

    @property
    def checkpoint(self) -> Path:
        """The state of unfinished work; `finish` deletes it."""
        return self.path / CHECKPOINT

    def usable_checkpoint(self) -> Path:
        """The path of the checkpoint of a training; a damaged file there is set aside first."""
        try:
            check_checkpoint(self.checkpoint)
        except DamagedCheckpointError as error:
            self.set_checkpoint_aside(error)
        return self.checkpoint

    def set_checkpoint_aside(self, reason: Exception) -> None:
        """Move the damaged checkpoint to broken/ and say why; the work then starts again."""
        target = set_aside(self._context.run, self.checkpoint)
        self._context.reporter.say(
            f"{self._stage}: {self.checkpoint} {reason}, so this work starts again; the damaged file is now {target}"
        )

    def start(self) -> None:
        """Stamp the folder, remove what killed processes left there, and start the clock."""
        remove_leftovers(self.path)
        if self._identity is not None:
            stamp(self.path, self._identity)
        self._began = time.perf_counter()

    def stamp_resolved(self, resolved: Mapping[str, str], beside: Iterable[Path] = ()) -> None:
        """Add to the stamp the type of the device and what options set to `auto` stand for on this machine.

        Results of machines on which they stand for different values are never mixed. Call it before unfinished work is
        continued, not where a finished folder is read.

        Args:
            resolved: option -> value; the device is added.
            beside: folders whose results are compared with those of this one.

        Raises:
            UserError: the folder or one beside it was made with other values.
        """
        full = {**resolved, "machine.device": self._context.device.type}
        for folder in beside:
            check_resolved(folder, full)
        stamp_resolved(self.path, full)

    def record(
        self,
        unit: str,
        images: int,
        image_iterations: int | None = None,
        *,
        seconds: float | None = None,
        round: int | None = None,
        data_wait_s: float = 0.0,
        compile_s: float = 0.0,
    ) -> None:
        """Add a timing record (see `timing.Record`).

        Args:
            image_iterations: as many as images unless given.
            seconds: the time since `start`, or else since this object was created, unless given.
        """
        seconds = time.perf_counter() - self._began if seconds is None else seconds
        passes = images if image_iterations is None else image_iterations
        entry = timing.Record(self._stage, unit, seconds, images, passes, round, data_wait_s, compile_s)
        timing.record(self._context.run, entry, self._context.device)

    def list_skipped(self, files: Mapping[str, Sequence[BadFile]], prefix: str = "") -> None:
        """Write the table of the unreadable files of each split that were skipped; no table where there are none."""
        bad_files.write(self.path / f"{prefix}{bad_files.TABLE}", files)

    def finish(self, facts: dict[str, Any] | None = None, beside: Sequence[Path] = ()) -> None:
        """Mark the folder as done, listing the checksums of its files, and delete its checkpoint.

        Args:
            beside: files of the stage that are not in its folder.
        """
        files = checksums.listing(self.path) | checksums.listing(self.path, beside)
        mark_done(self.path, {**(facts or {}), checksums.FILES: files})
        self.checkpoint.unlink(missing_ok=True)

    @contextmanager
    def whole(self) -> Iterator[Path]:
        """A temporary folder that becomes this one, stamped and marked as done, once the block has ended.

        The marker lists the checksums of the files at the top of the folder. Those in its folders have a manifest.
        """
        with writing_folder(self.path) as folder:
            yield folder
            if self._identity is not None:
                stamp(folder, self._identity)
            top = sorted(path for path in folder.iterdir() if path.is_file())
            mark_done(folder, {checksums.FILES: checksums.listing(folder, top)})


def choose_device(machine: Machine) -> torch.device:
    """The device of the configuration; `auto` is a GPU where torch sees one.

    Raises:
        UserError: `cuda` is configured and torch sees no GPU.
    """
    if machine.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "torch sees no CUDA device",
            where="machine.device: cuda",
            remedy="check the driver, or set machine.device: auto",
        )
    if machine.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
