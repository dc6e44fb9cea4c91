"""Blocks: sizes, merges and Adam's new start, by hand, in plain PyTorch, in both engines, and after restarts."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.engines import CLASSES, IPC, SPEC, by_packed, by_reference, initial_state, randomised, recover_of, same
from torch import nn

from delt_hpc.config.load import load_config, parse_config
from delt_hpc.config.schema import Recover
from delt_hpc.errors import UserError
from delt_hpc.recovery import blocks, device_tables, reference
from delt_hpc.recovery.augmentation import augment, draw_view
from delt_hpc.recovery.batches import plan
from delt_hpc.recovery.reference import pixel_box
from delt_hpc.recovery.schedule import Schedule
from delt_hpc.recovery.scheduler import BatchScheduler, PackingPlan, ScheduledBatch
from delt_hpc.recovery.state import State
from delt_hpc.recovery.warmup import shortened

FADRM: dict[str, Any] = {
    "iterations": 16,
    "round_iterations": None,
    "blocks": 4,
    "block_sizes": [6, 8, 6, 8],
    "merge": 0.5,
    "batching": "mixed",
    "batch_size": 3,
    "crop_schedule": "constant",
}


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    """A network for images of any size."""
    torch.manual_seed(1)
    layers = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in ((3, 8), (8, 12))
    ]
    return randomised(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, CLASSES)))


def close(found: dict[str, State], expected: dict[str, State]) -> None:
    assert found.keys() == expected.keys()
    for key, state in found.items():
        for name in ("images", "exp_avg", "exp_avg_sq", "cross_entropy"):
            torch.testing.assert_close(getattr(state, name), getattr(expected[key], name), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            torch.tensor(state.curve, dtype=torch.float64), torch.tensor(expected[key].curve, dtype=torch.float64),
            rtol=1e-9, atol=1e-9,
        )  # fmt: skip


def test_the_sizes_are_the_published_ones_at_224_pixels_and_one_size_elsewhere() -> None:
    recover = load_config("digits", ["method=fadrm"]).recover
    assert (recover.iterations, recover.blocks, recover.merge, recover.r_bn) == (2000, 4, 0.5, 0.01)
    assert recover.sizes_at(224) == (200, 224, 200, 224)
    assert recover.sizes_at(32) == (32, 32, 32, 32)
    assert recover.model_copy(update={"blocks": 3}).sizes_at(224) == (200, 224, 224)
    assert recover.model_copy(update={"blocks": 1}).sizes_at(224) == (224,)
    assert recover.model_copy(update={"iterations": 0}).sizes_at(224) == (224,)


def test_half_the_size_costs_a_quarter() -> None:
    assert recover_of(**FADRM | {"blocks": 2, "block_sizes": [4, 8]}).pixel_share(8) == (0.25 + 1) / 2
    recover = load_config("digits", ["method=fadrm"]).recover
    assert recover.pixel_share(224) == pytest.approx((200**2 + 224**2) / (2 * 224**2))
    assert recover.pixel_share(32) == 1


def test_a_merge_is_the_weighted_sum_with_the_resized_start() -> None:
    """Two pixels side by side become four as 3/4 and 1/4 of their neighbours; half of each image is the start's."""
    recover = recover_of(**FADRM | {"block_sizes": [2, 4, 2, 4]})
    start = torch.tensor([0.0, 1.0, 2.0, 3.0]).expand(1, 3, 4, 4)
    state = blocks.start(start, recover)
    assert state.images.shape == (1, 3, 2, 2) and state.images[0, 0, 0].tolist() == [0.5, 2.5]
    state.images, state.t = torch.tensor([0.0, 4.0]).expand(1, 3, 2, 2), 4
    state.exp_avg += 1
    blocks.begin_block(state, recover, 4)
    # Resized: 0, 1, 3, 4. Merged with 0, 1, 2, 3: 0, 1, 2.5, 3.5.
    assert state.images[0, 0, 0].tolist() == [0.0, 1.0, 2.5, 3.5]
    assert state.exp_avg.shape == state.images.shape and not state.exp_avg.any() and not state.exp_avg_sq.any()
    state.t = 8
    blocks.begin_block(state, recover, 4)
    # Resized: 0.5, 3. Merged with the resized start, 0.5 and 2.5.
    assert state.images[0, 0, 0].tolist() == [0.5, 2.75]


def test_moments_may_be_kept() -> None:
    recover = recover_of(**FADRM | {"block_sizes": [4] * 4, "adam_moments": "run", "merge": 0.75})
    state = blocks.start(torch.ones(1, 3, 4, 4), recover)
    state.images, state.exp_avg, state.t = state.images * 5, state.exp_avg + 2, 4
    blocks.begin_block(state, recover, 4)
    assert (state.images == 0.75 * 5 + 0.25).all() and (state.exp_avg == 2).all()


def test_adam_counts_from_the_start_of_the_block() -> None:
    schedule = Schedule.of(recover_of(**FADRM))
    assert [schedule.adam_start(t) for t in (0, 3, 4, 7, 8, 15)] == [0, 0, 4, 4, 8, 12]
    assert [t for t in range(17) if schedule.starts_block(t)] == [4, 8, 12]
    assert [schedule.iterations_to_border(t) for t in (0, 3, 4, 6)] == [4, 1, 4, 2]
    kept = Schedule.of(recover_of(**FADRM | {"block_sizes": None, "adam_moments": "run"}))
    assert [kept.adam_start(t) for t in (0, 5, 15)] == [0, 0, 0]


@pytest.mark.parametrize("moments", ["per_block", "run"])
def test_the_reference_engine_is_a_loop_over_torch_s_adam(moments: str, teacher: nn.Module) -> None:
    sizes = [6, 8, 6, 8] if moments == "per_block" else [8] * 4
    recover, double = recover_of(**FADRM | {"block_sizes": sizes, "adam_moments": moments}), copy.deepcopy(teacher)
    double = double.double()
    batch = plan(CLASSES, IPC, recover)[0]
    state = by_reference([batch], double, recover, torch.float64)[batch.id]

    def resized(images: torch.Tensor, size: int) -> torch.Tensor:
        return F.interpolate(images, size=(size, size), mode="bilinear")

    initial = initial_state(batch, torch.float64, recover_of(**FADRM | {"blocks": 1, "block_sizes": None})).images
    labels = torch.tensor([entry.class_index for entry in batch.entries])
    layers = [layer for layer in double.modules() if isinstance(layer, nn.BatchNorm2d)]
    inputs: list[torch.Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for layer in layers]
    x, optimizer = resized(initial, sizes[0]).requires_grad_(), None
    for t in range(16):
        if t % 4 == 0 and t:
            merged = 0.5 * resized(x.detach(), sizes[t // 4]) + 0.5 * resized(initial, sizes[t // 4])
            if moments == "per_block":
                x, optimizer = merged.requires_grad_(), None
            else:
                x.data = merged
        optimizer = optimizer or torch.optim.Adam([x], betas=(0.5, 0.9))
        optimizer.param_groups[0]["lr"] = 0.25 * (1 + math.cos(math.pi * t / 16)) / 2
        inputs.clear()
        view = draw_view(sizes[t // 4], 0.08, SPEC.mirror, 0, *device_tables.draw_key(7, batch), t)
        loss = F.cross_entropy(double(augment(x, view)), labels)
        for number, (layer, values) in enumerate(zip(layers, inputs, strict=True)):
            var, mean = torch.var_mean(values, (0, 2, 3), correction=0)
            distance = (layer.running_var - var).norm() + (layer.running_mean - mean).norm()
            loss = loss + 0.01 * (10 if number == 0 else 1) * distance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        low, high = pixel_box(SPEC, x)
        x.data = x.data.clamp(low, high)
        assert state.curve[t][5] == pytest.approx(loss.item(), rel=1e-9)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(state.images, x.detach(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("segments", [1, 2, 8])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"block_sizes": [4, 5, 7, 8], "jitter": 3},
        {"block_sizes": None, "adam_moments": "run", "merge": 0.9},
        {"batching": "by_class", "batch_size": 10, "merge": 1.0, "blocks": 2, "block_sizes": [6, 8]},
    ],
)
def test_the_packed_engine_equals_the_reference_engine(
    changes: dict[str, Any], segments: int, teacher: nn.Module
) -> None:
    recover, double = recover_of(**FADRM | changes), copy.deepcopy(teacher).double()
    batches = plan(CLASSES, IPC, recover)
    expected = by_reference(batches, double, recover, torch.float64)
    close(by_packed(batches, double, recover, torch.float64, segments=segments), expected)


@pytest.mark.parametrize("segments", [1, 4])
def test_restarts_inside_and_between_blocks_give_the_same_bytes(segments: int, teacher: nn.Module) -> None:
    recover = recover_of(**FADRM, deterministic=True)
    batches = plan(CLASSES, IPC, recover)
    whole = by_packed(batches, teacher, recover, segments=segments)
    for stop in (1, 3, 4, 5, 8, 15, 16, 19, 20):
        stopped = by_packed(batches, teacher, recover, segments=segments, stop_after=stop)
        finished = {key: state for key, state in stopped.items() if state.t == recover.iterations}
        rest = [batch for batch in batches if batch.id not in finished]
        resumed = by_packed(rest, teacher, recover, segments=segments, states=stopped)
        assert same({batch.id: (finished | resumed)[batch.id] for batch in batches}, whole)


def test_the_reference_engine_resumes_at_any_iteration(teacher: nn.Module) -> None:
    recover = recover_of(**FADRM)
    batch = plan(CLASSES, IPC, recover)[0]
    saved: dict[int, State] = {}

    def save(state: State, _: int) -> None:
        saved[state.t] = state.to(torch.device("cpu"))

    def run(state: State, after: Callable[[State, int], None]) -> State:
        reference.recover(state, batch, teacher, recover, SPEC, device_tables.draw_key(7, batch), after)
        return state

    whole = run(initial_state(batch, torch.float32, recover), save)
    for t in (3, 4, 8, 13):
        assert torch.equal(run(saved[t].to(torch.device("cpu")), lambda *_: None).images, whole.images)


def test_checkpoints_in_blocks_of_different_sizes_travel_apart_until_they_meet(teacher: nn.Module) -> None:
    recover, double = recover_of(**FADRM), copy.deepcopy(teacher).double()
    batches = plan(CLASSES, IPC, recover)[:2]
    expected = by_reference(batches, double, recover, torch.float64)
    early = by_packed(batches[:1], double, recover, torch.float64, stop_after=2)
    late = by_packed(batches[1:], double, recover, torch.float64, stop_after=6)
    close(by_packed(batches, double, recover, torch.float64, segments=2, states=early | late), expected)


def test_a_pass_holds_one_size_and_most_batches() -> None:
    recover = recover_of(**FADRM)
    batches = plan(CLASSES, IPC, recover)

    def running(*iterations: int) -> list[int]:
        waiting = [
            ScheduledBatch(batch, lane, t) for lane, (batch, t) in enumerate(zip(batches, iterations, strict=False))
        ]
        scheduler = BatchScheduler(waiting, PackingPlan(len(waiting), 1, 1), Schedule.of(recover), (6, 8, 6, 8))
        scheduler.enter()
        return [scheduled.lane for scheduled in scheduler.running()]

    assert running(0, 1, 3) == [0, 1, 2]
    assert running(0, 9, 4) == [0, 1]  # blocks 0 and 2 have the same size
    assert running(0, 5, 14) == [1, 2]
    assert running(6, 0) == [1]  # the least advanced one catches up


def test_warm_up_runs_every_size() -> None:
    recover = load_config("digits", ["method=fadrm"]).recover
    short = shortened(recover)
    assert short.sizes_at(224) == recover.sizes_at(224) and short.iterations % 4 == 0 and short.iterations < 40
    delt = shortened(load_config("imagenet-1k-resnet18-ipc50").recover)
    assert (delt.iterations, delt.round_iterations) == (40, 5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"blocks": 3}, "recover.block_sizes: 4 sizes for 3 blocks; set recover.blocks: 4"),
        ({"blocks": 1, "block_sizes": None}, "recover.merge: images are merged with their start between blocks"),
        ({"blocks": 3, "block_sizes": None}, "recover.blocks: 3 does not divide recover.iterations = 16"),
        ({"round_iterations": 4, "batching": "by_class"}, "recover.blocks: 4 blocks require a single round"),
        ({"init": "noise"}, "recover.merge: merging with the start would add noise"),
        ({"adam_moments": "run"}, "recover.adam_moments: run: moments have the size of the images"),
    ],
)
def test_contradictory_options_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as error:
        parse_config({"recover": FADRM | changes}, "test")
    assert str(error.value).startswith(f"test: {expected}")


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        (8, {"block_sizes": [8, 8, 8, 6]}, "the images of the last block are the distilled ones"),
        (8, {"block_sizes": [9, 8, 8, 8]}, "the images of the last block are the distilled ones"),
        (224, {"block_sizes": None, "adam_moments": "run"}, "moments have the size of the images, which changes"),
        (8, {"block_sizes": [7, 8, 7, 8]}, "(?s)`convnet3` for images of 8 x 8 does not accept images of 7 x 7"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(size: int, changes: dict[str, Any], message: str) -> None:
    config = parse_config({"recover": FADRM | changes}, "test")
    with pytest.raises(UserError, match=message):
        blocks.check_blocks(config, CLASSES, size)
    accepted = config.model_copy(update={"recover": Recover(**FADRM | {"block_sizes": None})})
    blocks.check_blocks(accepted, CLASSES, 8)


@pytest.mark.slow
def test_compiled_code_gives_the_same_bytes_after_a_restart_in_another_block(teacher: nn.Module) -> None:
    """The restarted process sees the sizes in another order; each call forgets what was compiled before."""
    recover = recover_of(**FADRM, compile=True)
    batches = plan(CLASSES, IPC, recover)[:2]
    torch._dynamo.reset()
    undisturbed = by_packed(batches, teacher, recover)
    torch._dynamo.reset()
    stopped = by_packed(batches, teacher, recover, stop_after=5)
    torch._dynamo.reset()
    assert same(undisturbed, by_packed(batches, teacher, recover, states=stopped))
