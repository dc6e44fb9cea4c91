"""The packed engine against the reference engine, and against itself with another packing."""

import copy
from typing import Any

import pytest
import torch
from helpers.engines import (
    CLASSES,
    IPC,
    SIZE,
    by_packed,
    by_reference,
    preset,
    randomised,
    recover_of,
    same,
    small_teacher,
)
from torch import nn

from delt_hpc.errors import UserError
from delt_hpc.models.registry import build
from delt_hpc.recovery import engine
from delt_hpc.recovery.batches import plan
from delt_hpc.recovery.state import State


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return small_teacher()


@pytest.mark.parametrize("method", ["delt", "cda", "sre2l", "fadrm"])
@pytest.mark.parametrize("segments", [1, 2, 8])
def test_a_whole_run_equals_the_reference_engine_s(method: str, segments: int, teacher: nn.Module) -> None:
    """In float64, to 1e-9: images, moments, losses of every iteration, for batches of different sizes."""
    recover, double = preset(method), copy.deepcopy(teacher).double()
    batches = plan(CLASSES, IPC, recover)
    expected = by_reference(batches, double, recover, torch.float64)
    found = by_packed(batches, double, recover, torch.float64, segments=segments)
    assert found.keys() == expected.keys()
    for key, state in found.items():
        for name in ("images", "exp_avg", "exp_avg_sq", "cross_entropy"):
            torch.testing.assert_close(getattr(state, name), getattr(expected[key], name), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            torch.tensor(state.curve, dtype=torch.float64), torch.tensor(expected[key].curve, dtype=torch.float64),
            rtol=1e-9, atol=1e-9,
        )  # fmt: skip


@pytest.mark.parametrize("changes", [{"adam_steps": "per_entry"}, {"lr_schedule": "per_round"}, {"batch_size": 3}])
def test_options_equal_the_reference_engine_s(changes: dict[str, Any], teacher: nn.Module) -> None:
    recover, double = recover_of(**changes), copy.deepcopy(teacher).double()
    batches = plan(CLASSES, IPC, recover)
    expected = by_reference(batches, double, recover, torch.float64)
    found = by_packed(batches, double, recover, torch.float64, segments=3)
    for key, state in found.items():
        torch.testing.assert_close(state.images, expected[key].images, rtol=1e-9, atol=1e-9)


def test_a_residual_network_equals_the_reference_engine_s() -> None:
    recover = recover_of(iterations=4, round_iterations=2)
    torch.manual_seed(2)
    double = randomised(build("resnet18-small-stem", CLASSES, SIZE)).double()
    batches = plan(CLASSES, IPC, recover)[:2]
    expected = by_reference(batches, double, recover, torch.float64)
    found = by_packed(batches, double, recover, torch.float64, segments=2)
    for key, state in found.items():
        torch.testing.assert_close(state.images, expected[key].images, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("precision", "band"), [("float32", 1e-4), ("bfloat16", 0.05), ("float16", 0.01)])
def test_losses_in_lower_precision_stay_in_their_band(precision: str, band: float, teacher: nn.Module) -> None:
    """Relative to the reference engine in float32, for the mean loss of every round."""
    recover = recover_of(precision=precision)
    batches = plan(CLASSES, IPC, recover)
    expected = by_reference(batches, teacher, recover, torch.float32)
    found = by_packed(batches, teacher, recover, segments=3)
    for key, state in found.items():
        ours, theirs = (torch.tensor(run.curve)[:, 5].view(4, 4).mean(1) for run in (state, expected[key]))
        assert ((ours - theirs).abs() <= band * theirs).all()


@pytest.mark.parametrize("segments", [1, 4])
def test_deterministic_bytes_do_not_depend_on_tasks_order_or_restarts(segments: int, teacher: nn.Module) -> None:
    recover = recover_of(deterministic=True)
    batches = plan(CLASSES, IPC, recover)
    whole = by_packed(batches, teacher, recover, segments=segments)
    tasks: dict[str, State] = {}
    for batch in batches:
        tasks |= by_packed([batch], teacher, recover, segments=segments)
    assert same(tasks, whole)
    backwards = by_packed(batches[::-1], teacher, recover, segments=segments)
    assert same({batch.id: backwards[batch.id] for batch in batches}, whole)
    for stop in (1, 3, 4, 10, 17, 23):
        stopped = by_packed(batches, teacher, recover, segments=segments, stop_after=stop)
        finished = {key: state for key, state in stopped.items() if state.t == recover.iterations}
        rest = [batch for batch in batches if batch.id not in finished]
        resumed = by_packed(rest, teacher, recover, segments=segments, states=stopped)
        assert same({batch.id: (finished | resumed)[batch.id] for batch in batches}, whole)


def test_checkpoints_of_different_times_give_the_same_bytes(teacher: nn.Module) -> None:
    """The checkpoints of two batches are from different times, less than a round apart."""
    recover = recover_of(deterministic=True)
    batches = plan(CLASSES, IPC, recover)
    whole = by_packed(batches, teacher, recover, segments=4)
    early = by_packed(batches, teacher, recover, segments=4, stop_after=6)
    late = by_packed(batches, teacher, recover, segments=4, stop_after=9)
    checkpoints = {batches[0].id: early[batches[0].id], batches[1].id: late[batches[1].id]}
    resumed = by_packed(batches, teacher, recover, segments=4, states=checkpoints)
    assert same({batch.id: resumed[batch.id] for batch in batches}, whole)


def test_packing_changes_only_the_last_bits(teacher: nn.Module) -> None:
    recover = recover_of(iterations=8, round_iterations=2)
    batches = plan(CLASSES, IPC, recover)
    alone, together = (by_packed(batches, teacher, recover, segments=segments) for segments in (1, 3))
    for key, state in together.items():
        torch.testing.assert_close(state.images, alone[key].images, rtol=1e-3, atol=1e-3)


def test_the_time_of_a_pass_is_shared_by_its_images(teacher: nn.Module) -> None:
    recover = recover_of()
    states = by_packed(plan(CLASSES, IPC, recover), teacher, recover, segments=3)
    for state in states.values():
        assert len(state.round_seconds) == 4
        assert all(seconds > 0 for seconds in state.round_seconds)


def test_a_loss_that_is_not_finite_stops_the_run(teacher: nn.Module) -> None:
    broken = copy.deepcopy(teacher)
    next(layer for layer in broken.modules() if isinstance(layer, nn.Linear)).weight[0, 0] = torch.nan
    recover = recover_of()
    with pytest.raises(UserError, match="losses of batch 00000-00001 contain NaN"):
        by_packed(plan(CLASSES, IPC, recover)[:1], broken, recover)


def test_images_that_are_not_finite_are_not_saved(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """An overflow in the last step, after the last loss was checked."""
    recover = recover_of()
    batch = plan(CLASSES, IPC, recover)[0]
    original, calls = engine.adam_, [0]

    def overflowing(*args: Any, **options: Any) -> None:
        original(*args, **options)
        calls[0] += 1
        if calls[0] == recover.iterations:
            args[0][0, 0, 0, 0] = torch.nan

    monkeypatch.setattr(engine, "adam_", overflowing)
    with pytest.raises(UserError, match="images of batch 00000-00001 contain NaN"):
        by_packed([batch], teacher, recover)


@pytest.mark.slow
def test_compiled_losses_are_the_same(teacher: nn.Module) -> None:
    recover = recover_of(iterations=8, round_iterations=2)
    batches = plan(CLASSES, IPC, recover)
    plain = by_packed(batches, teacher, recover, segments=2)
    compiled = by_packed(batches, teacher, recover.model_copy(update={"compile": True}), segments=2)
    for key, state in compiled.items():
        torch.testing.assert_close(state.images, plain[key].images, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_compiled_code_gives_the_same_bytes_after_a_restart(teacher: nn.Module) -> None:
    """A restarted process compiles for other shapes first; each call here forgets what was compiled before."""
    recover = recover_of(iterations=16, round_iterations=4, compile=True)
    batches = plan(CLASSES, IPC, recover)[:2]
    torch._dynamo.reset()
    undisturbed = by_packed(batches, teacher, recover)
    torch._dynamo.reset()
    stopped = by_packed(batches, teacher, recover, stop_after=10)
    torch._dynamo.reset()
    assert same(undisturbed, by_packed(batches, teacher, recover, states=stopped))
