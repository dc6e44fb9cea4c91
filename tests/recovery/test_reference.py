"""The reference engine: Adam, entry rounds, augmentation, resumption."""

import copy
from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch
from torch import nn

from delt_hpc.config.schema import Recover
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.random_crop import Window
from delt_hpc.errors import UserError
from delt_hpc.models.networks import ConvNet
from delt_hpc.recovery import reference
from delt_hpc.recovery.augmentation import View, augment, draw_view
from delt_hpc.recovery.batches import Batch, plan
from delt_hpc.recovery.reference import State, pixel_box, recover

SPEC = DatasetSpec("toy", 4, 8, 8, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), True, "convnet3")
CONFIG = Recover(iterations=12, round_iterations=3, batch_size=20)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    torch.manual_seed(1)
    network = ConvNet(3, 4, 8)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
    return network.eval().requires_grad_(False)


def batch_of(config: Recover, ipc: int = 5) -> Batch:
    return plan(4, ipc, config)[0]


def start(batch: Batch, dtype: torch.dtype = torch.float32) -> State:
    return State.start(torch.randn(len(batch.entries), 3, 8, 8, generator=torch.Generator().manual_seed(3)).to(dtype))


def run(state: State, batch: Batch, teacher: nn.Module, config: Recover, stop: int | None = None) -> State:
    class StopError(Exception):
        pass

    def after(state: State, active: int) -> None:
        if state.t == stop:
            raise StopError

    with suppress(StopError):
        recover(state, batch, teacher, config, SPEC, (0, "recover", batch.id), after)
    return state


@pytest.mark.parametrize("adam_steps", ["shared", "per_entry"])
def test_adam_is_torch_s(teacher: nn.Module, adam_steps: str) -> None:
    """`shared` is torch.optim.Adam on the whole tensor, as published; `per_entry` one optimiser an entry round."""
    config = CONFIG.model_copy(update={"adam_steps": adam_steps})
    batch = batch_of(config)
    double = copy.deepcopy(teacher).double()
    state = run(start(batch, torch.float64), batch, double, config)

    from delt_hpc.recovery.objective import Objective
    from delt_hpc.recovery.schedule import Schedule

    schedule = Schedule.of(config)
    labels = torch.tensor([entry.class_index for entry in batch.entries])
    whole = start(batch, torch.float64).images
    rounds = range(config.rounds) if adam_steps == "per_entry" else [None]
    rows = {r: torch.tensor([r is None or entry.round == r for entry in batch.entries]) for r in rounds}
    parts = {r: whole[mask].clone().requires_grad_() for r, mask in rows.items()}
    optimizers = {r: torch.optim.Adam([part], lr=1.0, betas=(0.5, 0.9)) for r, part in parts.items()}
    low, high = pixel_box(SPEC, whole)
    with Objective(double, config.r_bn, config.first_bn_weight) as objective:
        for t in range(config.iterations):
            images = torch.zeros_like(whole)
            for r, mask in rows.items():
                images[mask] = parts[r]
            active = batch.active(schedule.round(t))
            view = draw_view(8, schedule.smallest_crop(t), True, 0, 0, "recover", batch.id, t)
            loss = objective(augment(images[:active], view), labels[:active]).total
            for r, optimizer in optimizers.items():
                if r is None or r <= schedule.round(t):
                    optimizer.zero_grad()
            loss.backward()
            for r, optimizer in optimizers.items():
                if r is None or r <= schedule.round(t):
                    optimizer.param_groups[0]["lr"] = schedule.lr(t)
                    optimizer.step()
            with torch.no_grad():
                for r, part in parts.items():
                    touched = whole.new_tensor([i < active for i in range(len(whole))]).bool()[rows[r]]
                    part[touched] = part[touched].clamp(low, high)
    expected = torch.zeros_like(whole)
    for r, mask in rows.items():
        expected[mask] = parts[r].detach()
    torch.testing.assert_close(state.images, expected, rtol=1e-8, atol=1e-9)


def test_the_first_step_of_a_late_image_is_larger_under_shared_counts(teacher: nn.Module) -> None:
    """(1 - b1) / sqrt(1 - b2) = 1.58 learning rates once the counts are large; exactly one under `per_entry`."""
    steps = {}
    for adam_steps in ("shared", "per_entry"):
        config = Recover(
            iterations=80,
            round_iterations=40,
            batch_size=8,
            adam_steps=adam_steps,
            lr=1e-3,
            crop_schedule="linear",
            min_crop=1.0,
        )
        batch = batch_of(config, ipc=2)
        before = run(start(batch), batch, teacher, config, stop=40)
        late = before.images[4:].clone()
        after = run(before, batch, teacher, config, stop=41)
        steps[adam_steps] = (after.images[4:] - late).abs().median().item() / (1e-3 * 0.5)
    assert steps["shared"] == pytest.approx(0.5 / 0.1**0.5, rel=0.02)
    assert steps["per_entry"] == pytest.approx(1.0, rel=0.02)


def test_rows_do_not_change_before_their_round(teacher: nn.Module) -> None:
    batch = batch_of(CONFIG)
    state = start(batch)
    original = state.images.clone()
    for stop, active in ((3, batch.active(0)), (6, batch.active(1)), (9, batch.active(2))):
        run(state, batch, teacher, CONFIG, stop)
        assert torch.equal(state.images[active:], original[active:])
        assert all(not torch.equal(now, was) for now, was in zip(state.images[:active], original, strict=False))


def test_pixels_stay_in_the_valid_range(teacher: nn.Module) -> None:
    batch = batch_of(CONFIG)
    state = run(start(batch), batch, teacher, CONFIG)
    low, high = pixel_box(SPEC, state.images)
    assert (state.images >= low).all() and (state.images <= high).all()
    assert torch.allclose(low.flatten(), torch.tensor([-2.0, -2.0, -2.0]))
    assert torch.allclose(high.flatten(), torch.tensor([3.0, 2.0, 4 / 3]))


def test_stopped_anywhere_and_resumed_gives_the_same_bits(teacher: nn.Module) -> None:
    batch = batch_of(CONFIG)
    undisturbed = run(start(batch), batch, teacher, CONFIG)
    for stop in range(1, 12):
        state = run(start(batch), batch, teacher, CONFIG, stop)
        assert state.t == stop
        resumed = run(State(**copy.deepcopy(vars(state))), batch, teacher, CONFIG)
        assert torch.equal(resumed.images, undisturbed.images)
        assert torch.equal(resumed.cross_entropy, undisturbed.cross_entropy)
        assert resumed.curve == undisturbed.curve


def test_optimisation_brings_the_statistics_nearer(teacher: nn.Module) -> None:
    config = Recover(iterations=60, round_iterations=None, lr=0.1, min_crop=1.0)
    batch = batch_of(config)
    state = run(start(batch), batch, teacher, config)
    assert state.curve[-1][7] < 0.7 * state.curve[0][7]


def test_a_loss_that_is_not_finite_stops_the_run(teacher: nn.Module) -> None:
    broken, batch = copy.deepcopy(teacher), batch_of(CONFIG)
    next(layer for layer in broken.modules() if isinstance(layer, nn.Linear)).weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="losses of batch 00000-00003 contain NaN"):
        run(start(batch), batch, broken, CONFIG)


def test_images_that_are_not_finite_are_not_saved(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake overflow in the last step, after the last loss was checked."""
    batch, adam, calls = batch_of(CONFIG), reference.adam, [0]

    def overflowing(state: State, *args: object) -> None:
        adam(state, *args)
        calls[0] += 1
        if calls[0] == CONFIG.iterations:
            state.images[0, 0, 0, 0] = torch.nan

    monkeypatch.setattr(reference, "adam", overflowing)
    with pytest.raises(UserError, match="images of batch 00000-00003 contain NaN"):
        run(start(batch), batch, teacher, CONFIG)


def test_presets_run_on_the_same_engine(teacher: nn.Module) -> None:
    mixed = Recover(
        iterations=4, round_iterations=None, batching="mixed", batch_size=4, crop_schedule="constant", jitter=2
    )
    batch = plan(4, 3, mixed)[1]
    state = run(start(batch), batch, teacher, mixed)
    assert {row[4] for row in state.curve} == {0.08}
    assert {row[2] for row in state.curve} == {4}


def views(**changes: object) -> Iterator[View]:
    values = {"size": 32, "smallest_crop": 0.08, "mirror": True, "jitter": 0} | changes
    for t in range(400):
        yield draw_view(*values.values(), 0, "recover", "b", t)


def test_views_are_pure_functions_of_their_key() -> None:
    assert list(views()) == list(views())
    assert draw_view(32, 0.08, True, 0, 1, "x") != draw_view(32, 0.08, True, 0, 2, "x")


def test_views_mirror_half_the_time_and_only_where_allowed() -> None:
    assert 150 < sum(view.mirrored for view in views()) < 250
    assert not any(view.mirrored for view in views(mirror=False))


def test_whole_images_at_the_start_of_the_curriculum() -> None:
    assert {view.window for view in views(smallest_crop=1.0)} == {Window(0, 0, 32, 32)}


def test_rolls_are_at_most_the_jitter() -> None:
    rolls = [r for view in views(jitter=3) for r in view.roll]
    assert set(rolls) == {0, 1, 2, 3}
    assert {view.roll for view in views()} == {(0, 0)}


def test_augment_crops_mirrors_and_rolls_in_this_order() -> None:
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.float64).view(2, 3, 8, 8)
    whole = Window(0, 0, 8, 8)
    assert torch.equal(augment(images, View(whole, False, (0, 0))), images)
    assert torch.equal(augment(images, View(whole, True, (2, 1))), images.flip(-1).roll((2, 1), (-2, -1)))
    corner = augment(images, View(Window(4, 2, 1, 1), False, (0, 0)))
    assert torch.equal(corner, images[:, :, 4:5, 2:3].expand(2, 3, 8, 8))


def test_augment_keeps_gradients() -> None:
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    view = View(Window(1, 2, 4, 3), True, (1, 2))
    assert torch.autograd.gradcheck(lambda x: augment(x, view), (images,))
