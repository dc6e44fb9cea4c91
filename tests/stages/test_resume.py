"""Interrupted work resumes and ends with the same bytes."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.toy import Start, copy_run, images_of

from delt_hpc.config.load import dump_config
from delt_hpc.config.schema import Config
from delt_hpc.context import Context
from delt_hpc.recovery import engine as packed
from delt_hpc.recovery import reference


class KillError(BaseException):
    """Simulates the death of the process: no handler of the program catches it."""


def stopping_at(call: int) -> Callable[..., object]:
    """A replacement for the training's epoch that kills the process at the given call."""
    from delt_hpc.training import loop

    epoch, calls = loop.Training._epoch, []

    def stop(self: loop.Training, *args: object) -> object:
        calls.append(args[0])
        if len(calls) == call:
            raise KillError
        return epoch(self, *args)

    return stop


@pytest.mark.parametrize("engine", ["packed", "reference"])
@pytest.mark.parametrize("at", [1, 3, 8, 9, 15])
def test_recovery_killed_at_any_iteration_ends_with_the_same_bits(
    start: Start,
    finished: Context,
    undisturbed: Callable[[str], Context],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    engine: str,
) -> None:
    """Two batches of eight iterations each, a checkpoint after every one."""
    module, name = (reference, "adam") if engine == "reference" else (packed, "adam_")
    root, changes = copy_run(finished, tmp_path / "run", "select"), {"recover": {"engine": engine}}
    original, calls = getattr(module, name), [0]

    def stopping(*args: object, **options: object) -> None:
        calls[0] += 1
        if calls[0] == at:
            raise KillError
        original(*args, **options)

    def counting(*args: object, **options: object) -> None:
        calls[0] += 1
        original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, stopping)
        with pytest.raises(KillError):
            start(root, ("recover",), changes)
    calls[0] = 0
    with monkeypatch.context() as patch:
        patch.setattr(module, name, counting)
        run = start(root, ("recover", "aggregate"), changes).run
    assert calls[0] == 16 - (at - 1)
    whole = undisturbed(engine).run
    assert images_of(run.distilled) == images_of(whole.distilled)
    assert (run.distilled / "manifest.csv").read_bytes() == (whole.distilled / "manifest.csv").read_bytes()
    assert not list(run.recover.rglob("checkpoint.pt"))


@pytest.fixture(scope="module")
def undisturbed(finished: Context, start: Start, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Context]:
    """The uninterrupted run with either engine."""
    by_reference: list[Context] = []

    def of(engine: str) -> Context:
        if engine == "packed":
            return finished
        if not by_reference:
            root = copy_run(finished, tmp_path_factory.mktemp("reference") / "run", "select")
            by_reference.append(start(root, ("recover", "aggregate"), {"recover": {"engine": "reference"}}))
        return by_reference[0]

    return of


@pytest.mark.parametrize("stage", ["squeeze", "evaluate"])
def test_training_killed_between_epochs_ends_with_the_same_result(
    finished: Context, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    from delt_hpc.training import loop

    monkeypatch.setattr(loop.Training, "checkpoint_seconds", 0.0)
    root = tmp_path / "run"
    if stage == "evaluate":
        copy_run(finished, root, "aggregate")
    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_epoch", stopping_at(2))
        with pytest.raises(KillError):
            start(root, (stage,))
    if stage == "squeeze":
        run = start(root, ("squeeze",)).run
        assert (run.teacher / "weights.safetensors").read_bytes() == (
            finished.run.teacher / "weights.safetensors"
        ).read_bytes()
        assert (run.teacher / "history.csv").read_bytes() == (finished.run.teacher / "history.csv").read_bytes()
        assert not (run.teacher / "checkpoint.pt").exists()
    else:
        run = start(root, ("evaluate",)).run
        ours, theirs = (sorted(r.evaluate.glob("*/history.csv")) for r in (run, finished.run))
        assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]


@pytest.mark.slow
@pytest.mark.parametrize(("kill", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)])
def test_ended_processes_lose_nothing(
    finished: Context, configure: Callable[..., Config], start: Start, tmp_path: Path, kill: signal.Signals, code: int
) -> None:
    """A real signal as soon as a batch has a checkpoint; then the same command again."""
    root, file = tmp_path / "run", tmp_path / "toy.yaml"
    long = {"recover": {"iterations": 96, "round_iterations": 24, "checkpoint_seconds": 0.0}}
    file.write_text(dump_config(configure(long)), encoding="utf-8")
    undisturbed = start(copy_run(finished, tmp_path / "undisturbed", "select"), ("recover", "aggregate"), long).run
    copy_run(finished, root, "select")
    command = [sys.executable, "-m", "delt_hpc.cli", "recover", str(file), "--run", str(root), "--quiet"]
    for batch in ("00000-00001", "00002-00003"):
        process = subprocess.Popen(command)
        checkpoint = root / "recover" / batch / "checkpoint.pt"
        while process.poll() is None and not checkpoint.exists():
            time.sleep(0.001)
        process.send_signal(kill)
        assert process.wait() == code
        assert checkpoint.exists()
    run = start(root, ("recover", "aggregate"), long).run
    assert images_of(run.distilled) == images_of(undisturbed.distilled)
    assert all(path.name.startswith(".") for path in root.rglob("*.tmp"))


def test_a_network_with_dropout_ends_with_the_same_result(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout draws from the global generator of torch, which checkpoints do not contain."""
    from delt_hpc.models import convnet
    from delt_hpc.training import loop

    monkeypatch.setattr(loop.Training, "checkpoint_seconds", 0.0)
    plain = convnet.ConvNet.__init__

    def with_dropout(self: convnet.ConvNet, *args: int) -> None:
        plain(self, *args)
        self.features.append(torch.nn.Dropout(0.5))

    monkeypatch.setattr(convnet.ConvNet, "__init__", with_dropout)
    undisturbed = start(tmp_path / "undisturbed", ("squeeze",)).run
    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_epoch", stopping_at(2))
        with pytest.raises(KillError):
            start(tmp_path / "run", ("squeeze",))
    torch.manual_seed(12345)
    run = start(tmp_path / "run", ("squeeze",)).run
    assert (run.teacher / "weights.safetensors").read_bytes() == (
        undisturbed.teacher / "weights.safetensors"
    ).read_bytes()
