"""What of a run is finished, by the markers that its stages leave. Reads, never writes."""

import os
from pathlib import Path

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.schema import Config, Stage
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.data.index import ClassMap, class_folders
from delt_hpc.errors import UserError
from delt_hpc.launch import plan
from delt_hpc.launch.plan import Task
from delt_hpc.recovery import batches
from delt_hpc.run.folder import DONE, RunFolder, is_done


class Markers:
    """A look at the run folder. Folders are listed once, for a shared file system answers slowly."""

    def __init__(self, config: Config, run: RunFolder, classes: int) -> None:
        self.config, self.run, self.classes = config, run, classes
        self._ranked = _names(run.rank)
        self._recovered = {name for name in _names(run.recover) if is_done(run.recover / name)}
        every = batches.plan(classes, config.select.ipc, config.recover)
        self._batches: dict[int, list[batches.Batch]] = {}
        for batch in every:
            self._batches.setdefault(batch.first, []).append(batch)

    def finished(self, stage: Stage) -> bool:
        return all(self.done(task) for task in plan.whole(self.config, stage, self.classes))

    def done_tasks(self, stage: Stage) -> set[Task]:
        return {task for task in plan.whole(self.config, stage, self.classes) if self.done(task)}

    def done(self, task: Task) -> bool:
        """Everything that the task makes is there."""
        run = self.run
        if task.stage == "rank":
            done, asked = self.classes_done(task)
            return is_done(run.rank) or (task.classes is not None and done == asked)
        if task.stage == "recover":
            return all(batch.id in self._recovered for batch in self._of(task))
        if task.trial:
            return is_done(task.trial.folder(run))
        if task.stage == "report":
            return self._report_is_current()
        folders = {"squeeze": run.teacher, "select": run.selected, "aggregate": run.distilled}
        return is_done(folders[task.stage])

    def classes_done(self, task: Task) -> tuple[int, int]:
        """Classes ranked of classes asked for."""
        classes = self._classes(task)
        if is_done(self.run.rank):
            return len(classes), len(classes)
        return sum(self.run.class_ranking(c).name in self._ranked for c in classes.indices), len(classes)

    def images_done(self, task: Task) -> tuple[int, int]:
        """Images recovered of images asked for, counted by finished batches."""
        mine = self._of(task)
        done = sum(len(batch.entries) for batch in mine if batch.id in self._recovered)
        return done, sum(len(batch.entries) for batch in mine)

    def missing_inputs(self, stage: Stage) -> list[str]:
        """What must be there before `stage` can work, and is not: a text each."""
        return [
            f"{earlier}: {', '.join(task.unit for task in self.missing(earlier)[:8])}"
            for earlier in plan.upstream(self.config, stage)
            if not self.finished(earlier)
        ]

    def missing(self, stage: Stage) -> list[Task]:
        return [task for task in plan.whole(self.config, stage, self.classes) if not self.done(task)]

    def _of(self, task: Task) -> list[batches.Batch]:
        return [batch for start in self._classes(task).indices for batch in self._batches.get(start, ())]

    def _classes(self, task: Task) -> ClassRange:
        return task.classes or ClassRange(0, self.classes - 1)

    def _report_is_current(self) -> bool:
        """It is there and younger than all that it shows."""
        run = self.run
        shown = [run.distilled / DONE, *(run.evaluate / name / DONE for name in _names(run.evaluate))]
        made = _time(run.report / DONE)
        return made > 0 and all(_time(path) <= made for path in shown)


def class_count(config: Config, run: RunFolder, given: int | None = None) -> int:
    """How many classes the data set has; it need not be here.

    The run's own class map, else `given`, else what the configuration, the folders or the registered data set say.

    Raises:
        UserError: nobody says.
    """
    data = config.data
    if run.classes.exists():
        found = len(ClassMap.read(run.classes))
        if given and given != found:
            raise UserError(f"{given} is not what the run has: {found}", where="--classes-count")
        return found
    count = given or data.num_classes or (len(data.classes) if data.classes else None)
    if count:
        return count
    if data.name in SPECS:
        return SPECS[data.name].classes
    root = (data.root or Path("data") / data.name) / data.train
    if root.is_dir():
        return len(class_folders(root))
    raise UserError(
        "the number of classes is not known: the data set is not here",
        where=str(root),
        remedy="give --classes-count N, or set data.root or data.num_classes",
    )


def _names(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(folder)}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
