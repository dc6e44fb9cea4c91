"""Runs both engines on the same small batches."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from delt_hpc.config.load import load_config
from delt_hpc.config.schema import Recover
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.recovery import blocks, device_tables, reference
from delt_hpc.recovery.batches import Batch, plan
from delt_hpc.recovery.engine_setup import build_engine
from delt_hpc.recovery.state import State

SIZE, CLASSES, IPC = 8, 5, 5
SPEC = DatasetSpec("toy", CLASSES, SIZE, SIZE, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), True, "convnet3")
DELT = {"iterations": 16, "round_iterations": 4, "batch_size": 10, "precision": "float32"}
CPU = torch.device("cpu")


def recover_of(**changes: Any) -> Recover:
    return Recover(**DELT | changes)


def preset(method: str) -> Recover:
    """The values of a method's preset, with few iterations, in float32."""
    values = load_config("digits", [f"method={method}"]).recover.model_dump()
    short = DELT | {"round_iterations": 4 if method == "delt" else None, "jitter": 3 if method == "sre2l" else 0}
    return Recover(**values | short)


def randomised(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
    return network.eval().requires_grad_(False)


def small_teacher() -> nn.Module:
    torch.manual_seed(1)
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.AvgPool2d(2))
        for a, b in ((3, 8), (8, 12))
    ]
    return randomised(nn.Sequential(*blocks, nn.Flatten(), nn.Linear(12 * 4, CLASSES)))


def initial_state(batch: Batch, dtype: torch.dtype, recover: Recover) -> State:
    generator = torch.Generator().manual_seed(sum(batch.id.encode()))
    return blocks.start(torch.randn(len(batch.entries), 3, SIZE, SIZE, generator=generator).to(dtype), recover)


def by_reference(
    batches: Sequence[Batch], teacher: nn.Module, recover: Recover, dtype: torch.dtype
) -> dict[str, State]:
    states = {}
    for batch in batches:
        states[batch.id] = state = initial_state(batch, dtype, recover)
        reference.recover(state, batch, teacher, recover, SPEC, device_tables.draw_key(7, batch), lambda *_: None)
    return states


def by_packed(
    batches: Sequence[Batch],
    teacher: nn.Module,
    recover: Recover,
    dtype: torch.dtype = torch.float32,
    *,
    segments: int = 1,
    device: torch.device = CPU,
    stop_after: int | None = None,
    states: dict[str, State] | None = None,
) -> dict[str, State]:
    """Recover the batches. With `stop_after` iterations, return what the checkpoints would hold then."""
    recover = recover.model_copy(update={"segments": segments})
    setup = build_engine(
        teacher.to(device), recover, SPEC, 7, plan(CLASSES, IPC, recover),
        device=device, batch_count=len(batches), dtype=dtype,
    )  # fmt: skip
    states = dict(states or {})
    scheduler = setup.scheduler(batches, {id_: state.t for id_, state in states.items()})
    engine, finished, left = setup.engine, {}, stop_after
    while scheduler:
        for scheduled in scheduler.enter():
            engine.enter(
                scheduled, states.setdefault(scheduled.batch.id, initial_state(scheduled.batch, dtype, recover))
            )
        running = scheduler.running()
        iterations = scheduler.iterations_to_border() if left is None else min(left, scheduler.iterations_to_border())
        done = engine.run(running, [states[p.batch.id] for p in running], iterations, lambda images: False)
        for scheduled in scheduler.advance(done):
            finished[scheduled.batch.id] = engine.snapshot(scheduled, states[scheduled.batch.id])
        for scheduled in running:
            if scheduler.starts_block(scheduled):
                engine.begin_block(scheduled, states[scheduled.batch.id])
        if left is not None and (left := left - done) == 0:
            return finished | {p.batch.id: engine.snapshot(p, states[p.batch.id]) for p in scheduler.in_flight}
    return finished


def same(one: dict[str, State], other: dict[str, State]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[key].images, other[key].images)
        and torch.equal(one[key].cross_entropy, other[key].cross_entropy)
        and one[key].curve == other[key].curve
        for key in one
    )
