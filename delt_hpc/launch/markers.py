"""Which tasks of a run are finished, as the marker files of the stages say. Only reads."""

from pathlib import Path

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.schema import Config, Stage
from delt_hpc.data.catalog.specs import SPECS, root_of
from delt_hpc.data.index import ClassMap, class_folders
from delt_hpc.errors import UserError
from delt_hpc.launch import plan
from delt_hpc.launch.plan import WARM_UP, Task
from delt_hpc.launch.script import COMPILED
from delt_hpc.recovery import batches
from delt_hpc.run import late
from delt_hpc.run.folder import DONE, RunFolder, has_marker


class Markers:
    """The state of a run folder at one moment. Folders are listed only once: shared file systems are slow."""

    def __init__(self, config: Config, run: RunFolder, classes: int) -> None:
        self.config, self.run, self.classes = config, run, classes
        self._ranked = late.names(run.rank)
        self._recovered = {name for name in late.names(run.recover) if _is_done(run.recover / name)}
        self._batches: dict[int, list[batches.Batch]] = {}  # by first class
        for batch in batches.plan(classes, config.select.ipc, config.recover):
            self._batches.setdefault(batch.first, []).append(batch)

    def finished(self, stage: Stage) -> bool:
        return not self.missing(stage)

    def missing(self, stage: Stage) -> list[Task]:
        """The smallest tasks of the stage that are not done."""
        return [task for task in plan.whole(self.config, stage, self.classes) if not self.done(task)]

    def done_tasks(self, stage: Stage) -> set[Task]:
        """The smallest tasks of the stage that are done, and the warm-up if it is."""
        tasks = plan.whole(self.config, stage, self.classes)
        return {task for task in (*tasks, WARM_UP) if task.stage == stage and self.done(task)}

    def done(self, task: Task) -> bool:
        """Are all results of the task there?"""
        run = self.run
        if task.stage == "rank":
            done, total = self.classes_done(task)
            return _is_done(run.rank) or (task.classes is not None and done == total)
        if task.warm_up:
            return any((run.root / COMPILED).glob("*/files.tar"))
        if task.stage == "recover":
            return all(batch.id in self._recovered for batch in self._batches_of(task))
        if task.trial:
            return _is_done(task.trial.folder(run))
        if task.stage == "report":
            return self._report_is_current()
        folders = {"squeeze": run.teacher, "select": run.selected, "aggregate": run.distilled}
        return _is_done(folders[task.stage])

    def classes_done(self, task: Task) -> tuple[int, int]:
        """Number of classes of a rank task that are ranked, and of all its classes."""
        classes = self._classes(task)
        if _is_done(self.run.rank):
            return len(classes), len(classes)
        return sum(self.run.class_ranking(c).name in self._ranked for c in classes.indices), len(classes)

    def images_done(self, task: Task) -> tuple[int, int]:
        """Number of images of a recover task in finished batches, and of all its images."""
        planned = self._batches_of(task)
        done = sum(len(batch.entries) for batch in planned if batch.id in self._recovered)
        return done, sum(len(batch.entries) for batch in planned)

    def missing_inputs(self, stage: Stage) -> list[str]:
        """The earlier stages that `stage` needs and that are not finished: one text for each."""
        return [
            f"{earlier}: {', '.join(task.unit for task in self.missing(earlier)[:8])}"
            for earlier in plan.upstream(self.config, stage)
            if not self.finished(earlier)
        ]

    def _batches_of(self, task: Task) -> list[batches.Batch]:
        return [batch for first in self._classes(task).indices for batch in self._batches.get(first, ())]

    def _classes(self, task: Task) -> ClassRange:
        return task.classes or ClassRange(0, self.classes - 1)

    def _report_is_current(self) -> bool:
        """The report exists, nothing that it shows is missing, and it is newer than all of that."""
        run = self.run
        if not all(self.finished(stage) for stage in plan.upstream(self.config, "report")):
            return False
        shown = [run.distilled / DONE, *(run.evaluate / name / DONE for name in late.names(run.evaluate))]
        written = _time(run.report / DONE)
        return written > 0 and all(_time(path) <= written for path in shown)


def class_count(config: Config, run: RunFolder, given: int | None = None) -> int:
    """Number of classes of the data set, which need not be on this machine.

    The first that is known counts: the run's own class map, `given`, the configuration, the registered data set, the
    folders of the training images.

    Raises:
        UserError: none is known, or `given` contradicts the run.
    """
    data = config.data
    if run.classes.exists():
        found = len(ClassMap.read(run.classes))
        if given and given != found:
            raise UserError(f"{given} classes given, but the run has {found}", where="--classes-count")
        return found
    count = given or data.num_classes or (len(data.classes) if data.classes else None)
    if count:
        return count
    if data.name in SPECS:
        return SPECS[data.name].classes
    root = root_of(data) / data.train
    if root.is_dir():
        return len(class_folders(root))
    raise UserError(
        "the number of classes is unknown: there is no data set here",
        where=str(root),
        remedy="give --classes-count N, or set data.root or data.num_classes",
    )


def _is_done(folder: Path) -> bool:
    """Whether the folder has a marker that can be read. A damaged one counts as none: the stage does the work again."""
    return late.seen(folder) and has_marker(folder)


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
