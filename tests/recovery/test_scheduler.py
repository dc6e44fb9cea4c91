"""Which batches share a pass: constant shapes, every iteration of every batch once, resumption, fixed positions."""

import itertools

import pytest

from delt_hpc.config.schema import Recover
from delt_hpc.recovery.batches import plan
from delt_hpc.recovery.device_tables import Layout, make_layout
from delt_hpc.recovery.schedule import Schedule
from delt_hpc.recovery.scheduler import BatchScheduler, Capacity, PackingPlan, ScheduledBatch

RECOVER = Recover(iterations=80, round_iterations=10, batch_size=10)
SCHEDULE = Schedule.of(RECOVER)


def scheduled_batches(count: int, packing: PackingPlan, starts: dict[int, int] | None = None) -> list[ScheduledBatch]:
    batches = plan(2 * count, 5, RECOVER)
    return [ScheduledBatch(batch, i % packing.lanes, (starts or {}).get(i, 0)) for i, batch in enumerate(batches)]


def simulate(waiting: list[ScheduledBatch], packing: PackingPlan) -> list[tuple[int, list[tuple[str, int]], Layout]]:
    """Every run of the engine: its iterations, the batches with their first iteration, and the layout."""
    scheduler, capacity = BatchScheduler(waiting, packing, SCHEDULE), Capacity.of([p.batch for p in waiting], packing)
    runs = []
    while scheduler:
        scheduler.enter()
        running, iterations = scheduler.running(), scheduler.iterations_to_border()
        layout = make_layout(running, packing, capacity, SCHEDULE)
        runs.append((iterations, [(p.batch.id, p.t) for p in running], layout))
        scheduler.advance(iterations)
    return runs


def test_the_published_case_has_one_constant_shape() -> None:
    """IPC 50, batches of 100, 8 rounds: 14 + 28 + 40 + 52 + 64 + 76 + 88 + 100 = 462 images in 8 segments."""
    recover = Recover()
    packing = PackingPlan.of(20, recover.rounds, 8, deterministic=False)
    batches = plan(40, 50, recover)
    capacity = Capacity.of(batches, packing)
    assert (packing.lanes, packing.places, capacity.places) == (1, 8, (14, 28, 40, 52, 64, 76, 88, 100))
    assert (capacity.images, capacity.slot) == (462, 100)
    schedule = Schedule.of(recover)
    scheduler = BatchScheduler([ScheduledBatch(batch, 0) for batch in batches], packing, schedule)
    sizes = []
    while scheduler:
        scheduler.enter()
        sizes.append(make_layout(scheduler.running(), packing, capacity, schedule).images)
        assert scheduler.iterations_to_border() == 500
        scheduler.advance(500)
    assert len(sizes) == 20 + 7
    assert sizes[7:20] == [462] * 13
    assert sizes[:7] == [14, 42, 82, 134, 198, 274, 362]


@pytest.mark.parametrize("segments", [1, 2, 3, 4, 5, 8, 9, 16, 20])
@pytest.mark.parametrize("count", [1, 3, 9])
@pytest.mark.parametrize("deterministic", [False, True])
def test_every_batch_does_every_iteration_once(segments: int, count: int, deterministic: bool) -> None:
    packing = PackingPlan.of(count, RECOVER.rounds, segments, deterministic)
    assert 1 <= packing.segments <= max(segments, 1)
    waiting = scheduled_batches(count, packing)
    done: dict[str, list[int]] = {scheduled.batch.id: [] for scheduled in waiting}
    for iterations, running, layout in simulate(waiting, packing):
        assert len(running) <= packing.segments
        assert len(set(layout.rows.tolist())) == layout.images
        for batch, t in running:
            done[batch] += range(t, t + iterations)
    assert all(iterations == list(range(80)) for iterations in done.values())


def test_few_batches_start_together_and_many_are_staggered() -> None:
    assert PackingPlan.of(5, 8, 8, deterministic=False) == PackingPlan(5, 8, 8)
    assert PackingPlan.of(50, 8, 8, deterministic=False) == PackingPlan(1, 1, 8)
    assert PackingPlan.of(50, 8, 4, deterministic=False) == PackingPlan(1, 2, 8)
    assert PackingPlan.of(50, 8, 16, deterministic=False) == PackingPlan(2, 1, 8)
    assert PackingPlan.of(50, 1, 6, deterministic=False) == PackingPlan(6, 1, 1)


def test_a_deterministic_plan_does_not_depend_on_the_number_of_batches() -> None:
    assert len({PackingPlan.of(count, 8, 8, deterministic=True) for count in (1, 5, 8, 9, 100)}) == 1
    assert not PackingPlan.of(5, 8, 1, deterministic=True).padded  # one batch in a pass needs no padding


@pytest.mark.parametrize("segments", [2, 4, 8, 24])
def test_padded_positions_depend_on_round_and_lane_only(segments: int) -> None:
    """They do not depend on the number of batches or on where they resume."""
    positions: dict[tuple[int, int], tuple[int, int]] = {}
    sizes = set()
    for count, starts in ((1, {}), (3, {}), (12, {}), (12, {1: 33, 2: 57, 3: 9, 7: 40})):
        packing = PackingPlan.of(count, RECOVER.rounds, segments, deterministic=True)
        waiting = scheduled_batches(count, packing, starts)
        lanes = {scheduled.batch.id: scheduled.lane for scheduled in waiting}
        for _, running, layout in simulate(waiting, packing):
            sizes.add((layout.images, len(layout.offsets)))
            at = {run.scheduled.batch.id: i for i, run in enumerate(layout.segments) if run.scheduled}
            for batch, t in running:
                key = (lanes[batch], t // 10)
                position = (int(layout.offsets[at[batch]]), at[batch])
                assert positions.setdefault(key, position) == position
    assert len(sizes) == 1


@pytest.mark.parametrize("starts", [{0: 79, 1: 41}, {0: 5, 1: 5, 2: 5}, {1: 12, 2: 19}, dict.fromkeys(range(9), 15)])
def test_batches_resumed_at_any_iteration_finish(starts: dict[int, int]) -> None:
    """Checkpoints of different times bring two batches closer than a round: one pauses until its place is free."""
    for deterministic, segments in itertools.product((False, True), (1, 4, 8)):
        packing = PackingPlan.of(9, RECOVER.rounds, segments, deterministic)
        waiting = scheduled_batches(9, packing, starts)
        left = {scheduled.batch.id: 80 - scheduled.t for scheduled in waiting}
        for iterations, running, _ in simulate(waiting, packing):
            assert iterations > 0
            assert running
            for batch, _ in running:
                left[batch] -= iterations
        assert set(left.values()) == {0}


def test_a_smaller_last_batch_is_scheduled_too() -> None:
    batches = plan(5, 5, RECOVER)
    assert [len(batch.entries) for batch in batches] == [10, 10, 5]
    packing = PackingPlan.of(3, RECOVER.rounds, 3, deterministic=False)
    waiting = [ScheduledBatch(batch, i) for i, batch in enumerate(batches)]
    *_, (_, running, layout) = simulate(waiting, packing)
    assert len(running) == 3
    assert layout.offsets.tolist() == [0, 10, 20, 25]
    assert layout.labels.tolist()[20:] == [4] * 5
    assert layout.sample_weights.tolist()[20:] == [0.2] * 5
