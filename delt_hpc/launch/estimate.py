"""What a plan costs: time by measured or modelled speed, disk by arithmetic. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.schema import Config, Stage
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.launch import modelled
from delt_hpc.launch import plan as planning
from delt_hpc.launch.figures import Rate
from delt_hpc.launch.markers import Markers
from delt_hpc.launch.plan import Job, Task
from delt_hpc.launch.profile import Profile
from delt_hpc.recovery.batches import plan
from delt_hpc.run.folder import RunFolder, read_json

CHECKPOINT_TENSORS = 3  # images and Adam's two moments, float32
PLANES = 3


@dataclass(frozen=True)
class Row:
    """A stage of a plan.

    Attributes:
        tasks: how many are missing.
        ranges: classes of a task, from the first to the last; empty where there is no range.
        gpus, cpus: of a task.
        hours: of one device in all; None where no speed is known or the work is not.
        wall_hours: with the slots asked for.
        efficiency: of recover: share of a task's time that is work.
        warm_up: a job of its own compiles first.
        in_flight: recovery batches that a task works on at the same time, at most.
        pixels: of recover with blocks of smaller images: the average share of the pixels of a full image that an
            iteration works on; None without such blocks, or where the image size is not known.
    """

    stage: Stage
    tasks: int
    arrays: int
    ranges: str
    gpus: int
    cpus: int
    minutes: int
    parallel: int
    hours: float | None
    wall_hours: float | None
    rate: Rate | None
    efficiency: float | None = None
    warm_up: bool = False
    in_flight: int = 0
    pixels: float | None = None


@dataclass(frozen=True)
class Disk:
    """Bytes at most: images are counted as raw pixels, compressed ones are smaller."""

    images: int
    checkpoints: int


def rows(
    config: Config,
    profile: Profile,
    jobs: Sequence[Job],
    classes: int,
    rates: dict[Stage, Rate],
    *,
    slots: int | None = None,
    train_images: int | None = None,
) -> list[Row]:
    """One row for each stage that has work left.

    Args:
        slots: how many tasks run at a time, e.g. GPUs one may use; default: the profile's `parallel`.
        train_images: of the whole data set; None where it is not known.
    """
    found: list[Row] = []
    works = Work(config, classes, train_images)
    for stage in dict.fromkeys(job.stage for job in jobs):
        arrays = [job for job in jobs if job.stage == stage]
        tasks = [task for job in arrays for task in job.tasks if not task.warm_up]
        wanted, rate = profile.resources(stage), rates.get(stage)
        passes = [works.of(task) for task in tasks]
        lost = planning.lost_seconds(config, profile, rate.passes_per_s) if rate and stage == "recover" else 0.0
        each = [0.0] * passes.count(0)
        if rate:
            each = [(p / rate.passes_per_s + lost) / 3600 for p in passes if p is not None]
        known = len(each) == len(tasks)
        running = min(wanted.parallel, slots or wanted.parallel, len(tasks))
        found.append(
            Row(
                stage,
                len(tasks),
                sum(not job.tasks[0].warm_up for job in arrays),
                tasks[0].unit if len(tasks) == 1 else f"{tasks[0].unit} ... {tasks[-1].unit}",
                wanted.gpus,
                wanted.cpus,
                wanted.minutes,
                wanted.parallel,
                sum(each) if known else None,
                makespan(each, running) if known else None,
                rate,
                planning.efficiency(config, profile, tasks[0]) if stage == "recover" else None,
                any(task.warm_up for job in arrays for task in job.tasks),
                planning.in_flight(config, profile, tasks[0]) if stage == "recover" else 0,
                _pixels(config) if stage == "recover" else None,
            )
        )
    return found


def makespan(durations: Sequence[float], slots: int) -> float:
    """When the last of these ends, begun in this order, as soon as one of the slots is free."""
    ends = [0.0] * max(1, slots)
    for duration in durations:
        first = min(range(len(ends)), key=ends.__getitem__)
        ends[first] += duration
    return max(ends)


def disk(config: Config, classes: int, planned: Sequence[Row], slots: int | None = None) -> Disk | None:
    """Of the whole run; None where the image size is not known. Each batch on its way has a checkpoint."""
    running = sum(min(row.tasks, row.parallel, slots or row.tasks) * row.in_flight for row in planned)
    size = _size(config)
    if size is None:
        return None
    pixels = PLANES * size * size
    largest = max(len(batch.entries) for batch in plan(classes, config.select.ipc, config.recover))
    # Recovered images lie in recover/ and, aggregated, in distilled/.
    return Disk(2 * classes * config.select.ipc * pixels, running * largest * pixels * 4 * CHECKPOINT_TENSORS)


def _size(config: Config) -> int | None:
    """Height and width of the images, pixels; None where it is not known before the data set is read."""
    return config.data.size or (SPECS[config.data.name].size if config.data.name in SPECS else None)


def _pixels(config: Config) -> float | None:
    size = _size(config)
    share = config.recover.pixel_share(size) if size else 1.0
    return share if share < 1 else None


class Work:
    """Image-iterations of tasks, as timing records count them."""

    def __init__(self, config: Config, classes: int, train_images: int | None) -> None:
        self.config, self.classes, self.train_images = config, classes, train_images
        self._passes: dict[int, int] = {}  # by the first class of a batch
        for batch in plan(classes, config.select.ipc, config.recover):
            self._passes[batch.first] = self._passes.get(batch.first, 0) + planning.passes_of(batch, config.recover)

    def of(self, task: Task) -> int | None:
        config, images = self.config, self.classes * self.config.select.ipc
        if task.stage == "squeeze":
            epochs = config.squeeze.epochs if config.teacher.source == "train" else 0  # else weights are read
            return epochs and (self.train_images * epochs if self.train_images else None)
        if task.stage == "rank":
            classes = task.classes or ClassRange(0, self.classes - 1)
            if config.rank.candidates == "crops":
                each = min(config.rank.pool, (self.train_images or config.rank.pool * self.classes) // self.classes)
                return each * config.rank.crops * len(classes)
            return self.train_images * len(classes) // self.classes if self.train_images else None
        if task.stage == "recover":
            assert task.classes
            return sum(self._passes.get(c, 0) for c in task.classes.indices)
        if task.stage == "evaluate":
            shown = self.train_images if task.trial and task.trial.images == "full" else images
            return shown * config.evaluate.epochs if shown else None
        return images


def seconds_left(
    config: Config, run: RunFolder, classes: int, running: Mapping[Stage, int], rates: Mapping[Stage, Rate]
) -> dict[Stage, float]:
    """Upper estimate of the seconds until each running stage is finished; an unfinished batch counts in full.

    Args:
        running: number of running tasks of each stage.
        rates: measured speed of each stage; stages without one are left out.
    """
    markers = Markers(config, run, classes)
    images = int(read_json(run.dataset)["train_images"]) if run.dataset.exists() else None
    work = Work(config, classes, images)
    found: dict[Stage, float] = {}
    for stage, count in running.items():
        if not count or stage not in rates:
            continue
        passes = [work.of(task) for task in markers.missing(stage)]
        known = [p for p in passes if p is not None]
        if known and len(known) == len(passes):
            found[stage] = makespan([p / rates[stage].passes_per_s for p in known], count)
    return found


def speeds(config: Config, profile: Profile, rates: Mapping[Stage, Rate], running: Iterable[Stage]) -> list[str]:
    """A line for each running stage: its measured speed, and its share of what the model says for the profile."""
    expected, lines = modelled.rates(config, profile), []
    for stage in running:
        if stage in rates:
            rate, model = rates[stage], expected.get(stage)
            share = f", {rate.passes_per_s / model.passes_per_s:.0%} of the modelled speed" if model else ""
            lines.append(f"{stage}: {rate.passes_per_s:,.0f} image-iterations/s a task on {rate.device}{share}")
    return lines
