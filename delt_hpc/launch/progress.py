"""When what runs will be done, by the run's own measured speed."""

from collections.abc import Sequence

from delt_hpc.config.schema import Config, Stage
from delt_hpc.launch import estimate, figures, plan
from delt_hpc.launch.markers import Markers
from delt_hpc.launch.status import Row
from delt_hpc.run.folder import RunFolder, read_json


def left(config: Config, run: RunFolder, classes: int, rows: Sequence[Row]) -> dict[Stage, float]:
    """Seconds until each stage is finished that runs now, at most: a batch counts as long as it is not finished.

    Stages of which nothing is measured yet are left out.
    """
    rates, markers = figures.of_run(run), Markers(config, run, classes)
    images = int(read_json(run.dataset)["train_images"]) if run.dataset.exists() else None
    work = estimate.Work(config, classes, images)
    found: dict[Stage, float] = {}
    for stage in config.stages:
        running = sum(row.task.stage == stage and row.state == "running" for row in rows)
        if not running or stage not in rates:
            continue
        passes = [work.of(task) for task in plan.whole(config, stage, classes) if not markers.done(task)]
        known = [p for p in passes if p is not None]
        if known and len(known) == len(passes):
            found[stage] = estimate.makespan([p / rates[stage].passes_per_s for p in known], running)
    return found
