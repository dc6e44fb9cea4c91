"""The tasks of a run (by stage, class range and trial) and the jobs that they are submitted as. Pure functions."""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.schema import STAGES, Config, Recover, Stage
from delt_hpc.errors import UserError
from delt_hpc.launch import modelled
from delt_hpc.launch.profile import Profile
from delt_hpc.recovery import batches
from delt_hpc.recovery.batches import block_size
from delt_hpc.training.trial import Trial, trials

RANGED: tuple[Stage, ...] = ("rank", "recover")
DEFAULT_MAX_ARRAY_SIZE = 1001  # Slurm's own default
# Seconds in which a task starts Python and reads its inputs from a network file system, and in which it loads the code
# that the warm-up job compiled and records its CUDA graphs. Assumptions, not measured.
START_SECONDS, LOAD_SECONDS = 30.0, 60.0
MAX_LANES = 8  # batches of the same round in a pass, at most; `recovery.memory` has the same
WAVES = 4  # recover tasks for each slot at most; several, so that one slow task does not delay the stage much


@dataclass(frozen=True)
class Task:
    """The work of one job, or of one element of a job array.

    Attributes:
        classes: for rank and recover.
        trial: for evaluate.
        warm_up: compile for all tasks of the stage (recover).
    """

    stage: Stage
    classes: ClassRange | None = None
    trial: Trial | None = None
    warm_up: bool = False

    @property
    def unit(self) -> str:
        """What part of the stage: a class range, a trial, `warm-up`, or `all`."""
        if self.classes:
            return str(self.classes)
        return self.trial.id if self.trial else "warm-up" if self.warm_up else "all"

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.unit}"

    def overlaps(self, other: "Task") -> bool:
        """Do both write the same results?"""
        if self.classes and other.classes:
            return self.stage == other.stage and self.classes.overlaps(other.classes)
        return self == other


WARM_UP = Task("recover", warm_up=True)


@dataclass(frozen=True)
class Job:
    """Tasks that are submitted together, as one job or one job array.

    Attributes:
        parallel: how many of the tasks run at the same time, at most.
    """

    stage: Stage
    tasks: tuple[Task, ...]
    parallel: int

    def name(self, run: str) -> str:
        """Slurm's name for it: stage, range and run; `squeue` shows eight letters."""
        first, last = self.tasks[0], self.tasks[-1]
        if len(self.tasks) == 1:
            part = "" if first.unit == "all" else f"-{first.unit}"
        elif first.classes and last.classes:
            part = f"-{ClassRange(first.classes.first, last.classes.last)}"
        else:
            part = f"-{len(self.tasks)}-trials"
        return f"{self.stage}{part}-{run}"


def upstream(config: Config, stage: Stage) -> tuple[Stage, ...]:
    """The stages of this run whose results `stage` reads."""
    trained_on = {trial.images for trial in trials(config.evaluate)}
    selected = ("select",) if config.recover.init == "selected" else ()
    evaluated = [s for s, images in (("aggregate", "distilled"), ("select", "selected")) if images in trained_on]
    needs: dict[Stage, Iterable[str]] = {
        "squeeze": (),
        "rank": ("squeeze",),
        "select": ("rank",),
        "recover": ("squeeze", *selected),
        "aggregate": ("recover",),
        "evaluate": ("squeeze", *evaluated),
        "report": ("aggregate", "evaluate"),
    }
    return tuple(s for s in STAGES if s in needs[stage] and s in config.stages)


def whole(config: Config, stage: Stage, classes: int) -> list[Task]:
    """The whole stage as its smallest tasks: blocks of classes, trials, or one task."""
    if stage == "evaluate":
        return [Task(stage, trial=trial) for trial in trials(config.evaluate)]
    if stage not in RANGED or (stage == "rank" and config.rank.csv):
        return [Task(stage)]
    block = block_size(config.select.ipc, config.recover)
    return [Task(stage, ClassRange(first, min(first + block, classes) - 1)) for first in range(0, classes, block)]


def within(tasks: Iterable[Task], ranges: Sequence[ClassRange]) -> list[Task]:
    """The tasks of these class ranges, which do not overlap and may not cut a task; all tasks without a range."""
    if not ranges:
        return list(tasks)
    chosen: list[Task] = []
    for task in tasks:
        for classes in ranges:
            if not task.classes or not classes.overlaps(task.classes):
                continue
            if not classes.contains(task.classes):
                raise UserError(
                    f"classes {classes} cut the recovery batch of classes {task.unit}",
                    where="--classes",
                    expected="ranges that begin and end with a batch",
                )
            chosen.append(task)
    return chosen


def width(config: Config, profile: Profile, stage: Stage, classes: int) -> int:
    """Number of classes of a task: a multiple of those of a recovery batch.

    It is the profile's `classes_per_task`, or else one rank task for each slot, and for recover what this model says. A
    task of K batches takes as long as K + L turns of the pipeline, of which L are lost (`lost_turns`). A task has at
    least 3 L batches where there are more batches than slots, so that three quarters of its time are work, and L where
    slots outnumber batches. A long stage has WAVES tasks a slot.
    """
    block, resources = block_size(config.select.ipc, config.recover), profile.resources(stage)
    target = resources.classes_per_task or -(-classes // resources.parallel)
    if stage == "recover" and not resources.classes_per_task:
        blocks = -(-classes // block)
        count = blocks * _batches_of_block(config)
        least = math.ceil((3 if count > resources.parallel else 1) * lost_turns(config, profile))
        tasks = max(1, min(count // max(1, least), resources.parallel * WAVES))
        target = -(-blocks // tasks) * block
    return max(1, -(-target // block)) * block


def lost_turns(config: Config, profile: Profile) -> float:
    """Turns that a recover task loses: its pipeline fills and empties, and it starts and loads compiled code.

    A turn takes the time of one batch's passes, at the modelled speed.
    """
    rate, fill = modelled.rates(config, profile).get("recover"), fill_turns(config, profile)
    if not rate or not fill:
        return fill
    return lost_seconds(config, profile, rate.passes_per_s) * rate.passes_per_s / _turn(config)


def lost_seconds(config: Config, profile: Profile, passes_per_s: float) -> float:
    """What a recover task loses, in seconds; 0 if batches share no passes: its first one is then at full speed."""
    fill = fill_turns(config, profile)
    return START_SECONDS + LOAD_SECONDS + fill * _turn(config) / passes_per_s if fill else 0.0


def _turn(config: Config) -> int:
    """Image-iterations of a turn of the pipeline: as many as a batch has in all."""
    ipc, recover = config.select.ipc, config.recover
    return passes_of(batches.plan(block_size(ipc, recover), ipc, recover)[0], recover)


def passes_of(batch: batches.Batch, recover: Recover) -> int:
    """Image-iterations of a batch: every round works on all images that have entered."""
    return sum(batch.active(now) for now in range(recover.rounds)) * recover.round_length


def fill_turns(config: Config, profile: Profile) -> int:
    """Turns in which the pipeline of a recover task is filled or emptied: rounds - 1; 0 if batches share no passes."""
    recover = config.recover
    packs = _on_gpu(config, profile) if recover.segments == "auto" else recover.segments > 1
    return recover.rounds - 1 if packs and recover.engine != "reference" else 0


def efficiency(config: Config, profile: Profile, task: Task) -> float:
    """Share of a recover task's time that is work: K / (K + L) for K batches and L lost turns."""
    assert task.classes
    blocks = -(-len(task.classes) // block_size(config.select.ipc, config.recover))
    count = blocks * _batches_of_block(config)
    return count / (count + lost_turns(config, profile))


def in_flight(config: Config, profile: Profile, task: Task) -> int:
    """Batches that a recover task works on at the same time, at most: with packing all of its own, as memory allows."""
    assert task.classes
    count = -(-len(task.classes) // block_size(config.select.ipc, config.recover)) * _batches_of_block(config)
    return min(count, MAX_LANES * config.recover.rounds) if fill_turns(config, profile) else 1


def compiles(config: Config, profile: Profile) -> bool:
    """Whether recover tasks certainly compile; on a CPU `compile: auto` depends on the work and the processor."""
    recover = config.recover
    wanted = recover.compile is True or (recover.compile == "auto" and _on_gpu(config, profile))
    return wanted and recover.engine != "reference" and recover.iterations > 0


def _on_gpu(config: Config, profile: Profile) -> bool:
    return profile.resources("recover").gpus > 0 and config.machine.device != "cpu"


def _batches_of_block(config: Config) -> int:
    """Recovery batches that have the same classes."""
    ipc, recover = config.select.ipc, config.recover
    return ipc if recover.batching == "mixed" else -(-ipc // recover.batch_size)


def join(tasks: Iterable[Task], most: int) -> list[Task]:
    """Join tasks of neighbouring class ranges into tasks of at most `most` classes; leave other tasks unchanged."""
    joined: list[Task] = []
    for task in tasks:
        last = joined[-1] if joined else None
        if last and last.classes and task.classes and last.classes.last + 1 == task.classes.first:
            both = ClassRange(last.classes.first, task.classes.last)
            if len(both) <= most:
                joined[-1] = Task(task.stage, both)
                continue
        joined.append(task)
    return joined


def jobs(
    config: Config,
    profile: Profile,
    classes: int,
    *,
    done: Collection[Task] = (),
    stages: Iterable[Stage] | None = None,
    only: Sequence[ClassRange] = (),
    max_array_size: int = DEFAULT_MAX_ARRAY_SIZE,
) -> list[Job]:
    """The jobs for all tasks that are not done, in pipeline order.

    Args:
        classes: number of classes of the data set.
        done: the finished ones of the smallest tasks (`whole`), and WARM_UP if it is not needed.
        stages: only these stages; default: all of the run.
        only: only these class ranges, and only rank and recover.
        max_array_size: the largest number of tasks in a job array.
    """
    wanted = set(config.stages if stages is None else stages)
    found: list[Job] = []
    for stage in config.stages:
        if stage not in wanted or (only and stage not in RANGED):
            continue
        missing = [task for task in within(whole(config, stage, classes), only) if task not in done]
        tasks = join(missing, width(config, profile, stage, classes))
        if stage == "recover" and WARM_UP not in done and len(tasks) > 1 and compiles(config, profile):
            found.append(Job(stage, (WARM_UP,), 1))
        limit = min(max_array_size, profile.max_array_size or max_array_size)
        arrays = list(_chunks(tasks, limit))
        # Several arrays of a stage run at the same time and share its slots.
        found += [Job(stage, array, max(1, profile.resources(stage).parallel // len(arrays))) for array in arrays]
    return found


def _chunks(tasks: list[Task], size: int) -> Iterator[tuple[Task, ...]]:
    """As few chunks of at most `size` tasks as possible, of about equal length."""
    parts = -(-len(tasks) // size)
    for part in range(parts):
        yield tuple(tasks[len(tasks) * part // parts : len(tasks) * (part + 1) // parts])
