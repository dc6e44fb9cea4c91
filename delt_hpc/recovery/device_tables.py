"""Host tables of the packed engine: where each image is, how it is augmented, Adam's step sizes. NumPy only.

The tables for many iterations are computed and uploaded at once. The entries of a batch are functions of
(configuration, seed, batch, iteration); they do not depend on which other batches share the pass.
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
class Segment:
    """Consecutive images of a pass: the active images of a batch, or padding (scheduled is None)."""

    scheduled: ScheduledBatch | None
    images: int


@dataclass(frozen=True, eq=False)
class Layout:
    """The order of the N images of a pass, in G segments.

    Attributes:
        segments: in order; shorter than G if the last segments are empty.
        rows: int32 [N], the row of each image in the engine's buffers.
        offsets: int32 [G + 1], where segments begin and end.
        labels: int64 [N].
        sample_weights: float64 [N], 1 / active images of the batch, 0 for padding; sums with them are means.
        segment_mask: bool [G], false for padding and empty segments.
    """

    segments: tuple[Segment, ...]
    rows: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    sample_weights: np.ndarray
    segment_mask: np.ndarray

    @property
    def images(self) -> int:
        return len(self.rows)


def make_layout(
    running: Sequence[ScheduledBatch], packing: PackingPlan, capacity: Capacity, schedule: Schedule
) -> Layout:
    """The layout of a pass. Slot s has the rows from s * capacity.slot; the rows of padding follow the last slot.

    Args:
        running: sorted by place and lane.
    """
    active = {id(scheduled): scheduled.batch.active(schedule.round(scheduled.t)) for scheduled in running}
    if packing.padded:
        by_place = {(scheduled.place, scheduled.lane): scheduled for scheduled in running}
        segments = []
        for place in range(packing.places):
            for lane in range(packing.lanes):
                scheduled = by_place.get((place, lane))
                used = active[id(scheduled)] if scheduled else 0
                segments += [Segment(scheduled, used), Segment(None, capacity.places[place] - used)]
    else:
        segments = [Segment(scheduled, active[id(scheduled)]) for scheduled in running]
    rows: list[int] = []
    labels: list[int] = []
    sample_weights: list[float] = []
    next_padding_row = packing.segments * capacity.slot
    for segment in segments:
        if segment.scheduled is None:
            rows += range(next_padding_row, next_padding_row + segment.images)
            next_padding_row += segment.images
            labels += [0] * segment.images
            sample_weights += [0.0] * segment.images
        else:
            first = segment.scheduled.slot * capacity.slot
            rows += range(first, first + segment.images)
            labels += [entry.class_index for entry in segment.scheduled.batch.entries[: segment.images]]
            sample_weights += [1 / segment.images] * segment.images
    ends = np.cumsum([0] + [segment.images for segment in segments])
    segment_count = packing.segments * (2 if packing.padded else 1)
    offsets = np.full(segment_count + 1, len(rows), np.int32)
    offsets[: len(ends)] = ends
    segment_mask = np.zeros(segment_count, bool)
    segment_mask[: len(segments)] = [segment.scheduled is not None for segment in segments]
    return Layout(
        tuple(segments),
        np.array(rows, np.int32),
        offsets,
        np.array(labels, np.int64),
        np.array(sample_weights),
        segment_mask,
    )


def view_table(layout: Layout, iterations: int, recover: Recover, spec: DatasetSpec, seed: int) -> np.ndarray:
    """The augmentation of each segment: int32 [iterations, G, 8], (top, left, height, width, mirrored, down, right, 0).

    Padding is not augmented.
    """
    schedule = Schedule.of(recover)
    table = np.zeros((iterations, len(layout.segment_mask), 8), np.int32)
    table[:, :, 2:4] = spec.size
    for g, segment in enumerate(layout.segments):
        if segment.scheduled is None:
            continue
        key = draw_key(seed, segment.scheduled.batch)
        for i in range(iterations):
            t = segment.scheduled.t + i
            view = draw_view(spec.size, schedule.smallest_crop(t), spec.mirror, recover.jitter, *key, t)
            table[i, g, :7] = (*view.window, view.mirrored, *view.roll)
    return table


def draw_key(seed: int, batch: Batch) -> tuple[Key, ...]:
    """The key of a batch's random draws, to which the iteration is appended."""
    return seed, "recover", batch.id


def adam_table(layout: Layout, iterations: int, recover: Recover) -> np.ndarray:
    """Adam's step sizes: float64 [iterations, N, 2], (lr / (1 - b1^c), 1 / sqrt(1 - b2^c)), zeros for padding.

    c counts the steps of the batch or of the single image, as `recover.adam_steps` says, in its block if
    `recover.adam_moments` says so.
    """
    schedule, (beta1, beta2) = Schedule.of(recover), recover.betas
    table = np.zeros((iterations, layout.images, 2))
    for segment, first in zip(layout.segments, layout.offsets, strict=False):
        if segment.scheduled is None:
            continue
        t = segment.scheduled.t + np.arange(iterations)
        block_start = np.array([schedule.adam_start(int(iteration)) for iteration in t])
        entered = np.zeros(segment.images, int)
        if recover.adam_steps == "per_entry":
            entries = segment.scheduled.batch.entries[: segment.images]
            entered = np.array([entry.round for entry in entries]) * schedule.round_length
        counts = t[:, None] + 1 - np.maximum(entered[None, :], block_start[:, None])
        lr = np.array([schedule.lr(int(iteration)) for iteration in t])
        table[:, first : first + segment.images, 0] = lr[:, None] / (1 - beta1**counts)
        table[:, first : first + segment.images, 1] = 1 / np.sqrt(1 - beta2**counts)
    return table
