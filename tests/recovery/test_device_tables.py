"""The host tables are functions of batch and iteration, whatever else is in the pass."""

import numpy as np
import pytest

from delt_hpc.config.schema import Recover
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.recovery.augmentation import draw_view
from delt_hpc.recovery.batches import plan
from delt_hpc.recovery.device_tables import adam_table, draw_key, make_layout, view_table
from delt_hpc.recovery.schedule import Schedule
from delt_hpc.recovery.scheduler import Capacity, PackingPlan, ScheduledBatch

SPEC = DatasetSpec("toy", 4, 16, 16, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), True, "convnet3")
RECOVER = Recover(iterations=24, round_iterations=6, batch_size=8, jitter=3)
BATCHES = plan(8, 4, RECOVER)


def layout_at(recover: Recover, times: list[int], *, padded: bool = False):
    packing = PackingPlan(1, 1, recover.rounds, padded)
    scheduled_batches = [
        ScheduledBatch(batch, 0, t, slot, packing.place(t // recover.round_length))
        for slot, (batch, t) in enumerate(zip(BATCHES, times, strict=False))
    ]
    running = sorted(scheduled_batches, key=lambda scheduled: scheduled.place)
    return make_layout(running, packing, Capacity.of(BATCHES, packing), Schedule.of(recover))


def test_views_are_the_reference_engine_whatever_else_is_in_the_pass() -> None:
    alone, together = layout_at(RECOVER, [7]), layout_at(RECOVER, [7, 0, 19], padded=True)
    one, many = view_table(alone, 5, RECOVER, SPEC, 3), view_table(together, 5, RECOVER, SPEC, 3)
    segment = next(i for i, run in enumerate(together.segments) if run.scheduled and run.scheduled.batch is BATCHES[0])
    assert np.array_equal(one[:, 0], many[:, segment])
    schedule = Schedule.of(RECOVER)
    for i in range(5):
        view = draw_view(16, schedule.smallest_crop(7 + i), True, 3, *draw_key(3, BATCHES[0]), 7 + i)
        assert one[i, 0].tolist() == [*view.window, view.mirrored, *view.roll, 0]


def test_padding_is_not_augmented_and_changes_nothing() -> None:
    together = layout_at(RECOVER, [7, 0], padded=True)
    table, sizes = view_table(together, 2, RECOVER, SPEC, 0), adam_table(together, 2, RECOVER)
    for segment, (run, first) in enumerate(zip(together.segments, together.offsets, strict=False)):
        if run.scheduled is None:
            assert table[:, segment].tolist() == [[0, 0, 16, 16, 0, 0, 0, 0]] * 2
            rows = slice(first, first + run.images)
            assert not sizes[:, rows].any()
            assert not together.sample_weights[rows].any()
            assert not together.segment_mask[segment]
            assert (together.rows[rows] >= 4 * 8).all()  # after the slots, where no batch has images
    assert together.images == 2 + 4 + 6 + 8


@pytest.mark.parametrize("adam_steps", ["shared", "per_entry"])
def test_step_sizes_are_adam_s(adam_steps: str) -> None:
    recover = RECOVER.model_copy(update={"adam_steps": adam_steps})
    table = adam_table(layout_at(recover, [13]), 3, recover)  # third round: entries of rounds 0, 1, 2
    schedule = Schedule.of(recover)
    for i in range(3):
        for image, entry in enumerate(BATCHES[0].entries[:6]):
            count = 13 + i + 1 - (6 * entry.round if adam_steps == "per_entry" else 0)
            expected = schedule.lr(13 + i) / (1 - 0.5**count), 1 / (1 - 0.9**count) ** 0.5
            assert table[i, image] == pytest.approx(expected, rel=1e-14)
