"""What a pass is told by the host: where each image lies, how it is looked at, how far it steps. Pure; NumPy only.

The tables of a whole stretch of iterations are made at once and uploaded once; they are functions of (configuration,
seed, batch, iteration), never of who travels together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from delt_hpc.config.schema import Recover
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.keyed_random import Key
from delt_hpc.recovery.augmentation import draw_view
from delt_hpc.recovery.batches import Batch
from delt_hpc.recovery.schedule import Schedule
from delt_hpc.recovery.scheduler import Capacity, PackingPlan, ScheduledBatch


@dataclass(frozen=True)
class Run:
    """Consecutive images of a pass: those of a batch, or, without one, padding."""

    scheduled: ScheduledBatch | None
    images: int


@dataclass(frozen=True, eq=False)
class Layout:
    """Who is where in a pass of N images in G segments.

    Attributes:
        runs: the segments in order; behind the last one there may be empty ones.
        rows: int32 [N], each image's row among all images held.
        offsets: int32 [G + 1], the segments' borders.
        labels: int64 [N].
        shares: float64 [N], 1 / active images of its batch, 0 for padding: what turns sums into means.
        live: bool [G], false for padding and empty segments.
    """

    runs: tuple[Run, ...]
    rows: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    sample_weights: np.ndarray
    live: np.ndarray

    @property
    def images(self) -> int:
        return len(self.rows)


def layout(running: Sequence[ScheduledBatch], packing: PackingPlan, capacity: Capacity, schedule: Schedule) -> Layout:
    """The layout of a pass; slot s has rows s * room.slot ..., padding lies behind the last slot.

    Args:
        running: by place and lane.
    """
    active = {id(scheduled): scheduled.batch.active(schedule.round(scheduled.t)) for scheduled in running}
    if packing.padded:
        seated = {(scheduled.place, scheduled.lane): scheduled for scheduled in running}
        runs = []
        for place in range(packing.places):
            for lane in range(packing.lanes):
                scheduled = seated.get((place, lane))
                used = active[id(scheduled)] if scheduled else 0
                runs += [Run(scheduled, used), Run(None, capacity.places[place] - used)]
    else:
        runs = [Run(scheduled, active[id(scheduled)]) for scheduled in running]
    segments = packing.segments * (2 if packing.padded else 1)
    rows: list[int] = []
    labels: list[int] = []
    sample_weights: list[float] = []
    padding = packing.segments * capacity.slot
    for run in runs:
        if run.scheduled is None:
            rows += range(padding, padding + run.images)
            padding += run.images
            labels += [0] * run.images
            sample_weights += [0.0] * run.images
        else:
            first = run.scheduled.slot * capacity.slot
            rows += range(first, first + run.images)
            labels += [entry.class_index for entry in run.scheduled.batch.entries[: run.images]]
            sample_weights += [1 / run.images] * run.images
    borders = np.cumsum([0] + [run.images for run in runs])
    offsets = np.full(segments + 1, len(rows), np.int32)
    offsets[: len(borders)] = borders
    live = np.zeros(segments, bool)
    live[: len(runs)] = [run.scheduled is not None for run in runs]
    return Layout(
        tuple(runs), np.array(rows, np.int32), offsets, np.array(labels, np.int64), np.array(sample_weights), live
    )


def views(placed: Layout, iterations: int, recover: Recover, spec: DatasetSpec, seed: int) -> np.ndarray:
    """How each segment is looked at: int32 [iterations, G, 8], (top, left, height, width, mirrored, down, right, 0)."""
    schedule = Schedule.of(recover)
    table = np.zeros((iterations, len(placed.live), 8), np.int32)
    table[:, :, 2:4] = spec.size
    for segment, run in enumerate(placed.runs):
        if run.scheduled is None:
            continue
        key = draw_key(seed, run.scheduled.batch)
        for i in range(iterations):
            t = run.scheduled.t + i
            view = draw_view(spec.size, schedule.smallest_crop(t), spec.mirror, recover.jitter, *key, t)
            table[i, segment, :7] = (*view.window, view.mirrored, *view.roll)
    return table


def draw_key(seed: int, batch: Batch) -> tuple[Key, ...]:
    """Of a batch's random draws; the iteration is added."""
    return seed, "recover", batch.id


def steps(placed: Layout, iterations: int, recover: Recover) -> np.ndarray:
    """Adam's sizes: float64 [iterations, N, 2], (lr / (1 - b1^c), 1 / sqrt(1 - b2^c)), c each image's step count.

    The count is the batch's or the image's own (`adam_steps`); padding does not step.
    """
    schedule, (beta1, beta2) = Schedule.of(recover), recover.betas
    table = np.zeros((iterations, placed.images, 2))
    for run, first in zip(placed.runs, placed.offsets, strict=False):
        if run.scheduled is None:
            continue
        t = run.scheduled.t + np.arange(iterations)
        entered = np.zeros(run.images, int)
        if recover.adam_steps == "per_entry":
            entries = run.scheduled.batch.entries[: run.images]
            entered = np.array([entry.round for entry in entries]) * schedule.round_length
        counts = t[:, None] + 1 - entered[None, :]
        lr = np.array([schedule.lr(int(each)) for each in t])
        table[:, first : first + run.images, 0] = lr[:, None] / (1 - beta1**counts)
        table[:, first : first + run.images, 1] = 1 / np.sqrt(1 - beta2**counts)
    return table
