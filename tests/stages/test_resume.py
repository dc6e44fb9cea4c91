"""Interrupted work resumes and ends with the same bytes."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.toy import FOLDERS, Start, copy_run, images_of

from delt_hpc.config.load import dump_config
from delt_hpc.config.schema import Config, Stage
from delt_hpc.context import Context
from delt_hpc.data.loader import ValidationSet
from delt_hpc.models import networks
from delt_hpc.recovery import engine as packed
from delt_hpc.recovery import reference
from delt_hpc.run import stop
from delt_hpc.run.folder import RunFolder
from delt_hpc.training import loop


class KillError(BaseException):
    """Simulates the death of the process: no handler of the program catches it."""


class Steps:
    """Counts the steps of trainings; requests a stop in one of them, or ends the process before one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.stop_in, self.kill_before = 0, 0, 0
        step = loop.Training._step

        def counted(training: loop.Training, *args: object) -> None:
            if self.count + 1 == self.kill_before:
                raise KillError
            self.count += 1
            step(training, *args)  # type: ignore[arg-type]
            if self.count == self.stop_in:
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(loop.Training, "_step", counted)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


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


def trained(run: RunFolder) -> dict[str, bytes]:
    """The results of all trainings of a run."""
    names = ("weights.safetensors", "history.csv")
    files = [path for path in sorted(run.root.rglob("*")) if path.name in names]
    assert files
    return {str(path.relative_to(run.root)): path.read_bytes() for path in files}


@pytest.mark.parametrize("disturbance", ["stop", "kill"])
@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 6])
def test_a_teacher_s_training_resumes_at_the_step(
    finished: Context, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: Steps, at: int,
    disturbance: str,
) -> None:  # fmt: skip
    """Two epochs of three steps. A stop saves the state; before a kill it was saved after every step."""
    root = tmp_path / "run"
    if disturbance == "stop":
        steps.stop_in = at
        with pytest.raises(stop.Interrupted), stop.on_signal():
            start(root, ("squeeze",))
        assert steps.count == at
    else:
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        steps.kill_before = at
        with pytest.raises(KillError):
            start(root, ("squeeze",))
        steps.kill_before = 0
    run = start(root, ("squeeze",)).run
    assert steps.count == 6
    weights, history = (f"teacher/{name}" for name in ("weights.safetensors", "history.csv"))
    assert trained(run) == {name: trained(finished.run)[name] for name in (weights, history)}
    assert not (run.teacher / "checkpoint.pt").exists()


def test_students_trainings_resume_at_the_step(
    finished: Context, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: Steps
) -> None:
    """Eight trainings of two epochs of two steps. The state has the averaged model too."""
    root = tmp_path / "run"
    copy_run(finished, root, "aggregate")
    for at in (1, 6, 11, 20):  # in an epoch, after its last step, after a training's first and last step
        steps.stop_in = at
        with pytest.raises(stop.Interrupted), stop.on_signal():
            start(root, ("evaluate",))
        assert steps.count == at
    steps.stop_in = 0
    run = start(root, ("evaluate",)).run
    assert steps.count == 32
    assert trained(run) == trained(finished.run)


def test_a_training_stopped_in_validation_does_not_train_that_epoch_again(
    finished: Context, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: Steps
) -> None:
    batches = ValidationSet.batches

    def stopping(val: ValidationSet) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        signal.raise_signal(signal.SIGTERM)
        yield from batches(val)

    with monkeypatch.context() as patch:
        patch.setattr(ValidationSet, "batches", stopping)
        with pytest.raises(stop.Interrupted), stop.on_signal():
            start(tmp_path / "run", ("squeeze",))
    run = start(tmp_path / "run", ("squeeze",)).run
    assert steps.count == 6
    assert trained(run)["teacher/history.csv"] == trained(finished.run)["teacher/history.csv"]


def test_skipped_files_are_listed_after_a_resumption(start: Start, toy: Path, tmp_path: Path, steps: Steps) -> None:
    """Stopped after the last step: the restarted process reads no training image."""
    root = tmp_path / "images"
    shutil.copytree(toy, root)
    bad = root / "train" / FOLDERS[0] / "00000.png"
    bad.write_bytes(b"no image")
    changes = {"data": {"root": str(root), "on_bad": "skip"}, "squeeze": {"epochs": 1}}
    steps.stop_in = 3
    with pytest.raises(stop.Interrupted), stop.on_signal():
        start(tmp_path / "run", ("squeeze",), changes)
    run = start(tmp_path / "run", ("squeeze",), changes).run
    assert steps.count == 3
    assert f"{FOLDERS[0]}/00000.png" in (run.teacher / "skipped.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("stage", ["select", "aggregate"])
def test_copying_stages_stop_between_classes_and_resume(
    finished: Context, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    root = copy_run(finished, tmp_path / "run", "rank" if stage == "select" else "recover")
    checks = [0]

    def check() -> None:
        checks[0] += 1
        if checks[0] == 3:
            signal.raise_signal(signal.SIGTERM)
        if stop.requested():
            raise stop.Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(stop, "check", check)
        with pytest.raises(stop.Interrupted), stop.on_signal():
            start(root, (stage,))
    made = root / {"select": "selected", "aggregate": "distilled"}[stage]
    assert not (made / "done.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in made.rglob("*.png")}
    assert len(kept) == {"select": 9, "aggregate": 0}[stage]
    assert not list(root.rglob("*.tmp"))
    start(root, (stage,))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert images_of(made) == images_of(finished.run.root / made.name)


TRAINING = """
import sys
from delt_hpc import cli
from delt_hpc.training import loop

step = loop.Training._step

def told(*args):
    step(*args)
    print("step", flush=True)

loop.Training._step = told
sys.argv[0] = "delt-hpc"
cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_process_group_stops_a_training_with_loading_workers(
    configure: Callable[..., Config], start: Start, steps: Steps, image_folder: Callable[..., Path], tmp_path: Path,
    number: signal.Signals,
) -> None:  # fmt: skip
    """As `timeout`, Slurm and a terminal send it: the workers get it too."""
    for split, folder in itertools.product(("train", "val"), ("one", "two")):
        (image,) = image_folder(tmp_path / "images" / split, {folder: 1}, size=8).glob(f"{folder}/*")
        for copy in range(1, 2100 if split == "train" else 2):
            (image.parent / f"{copy:05d}.png").hardlink_to(image)
    changes = {
        "data": {"root": str(tmp_path / "images")},
        "squeeze": {"epochs": 1, "batch_size": 100},
        "machine": {"workers": 2},
    }
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(configure(changes)), encoding="utf-8")
    command = [sys.executable, "-c", TRAINING, "squeeze", str(config), "--run", str(tmp_path / "run"), "--quiet"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        for _ in range(3):
            assert process.stdout.readline() == "step\n"
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert err.splitlines()[-1] == "stopped on request; the same command resumes"
    done = 3 + out.count("step")
    assert 3 <= done < 42
    run = start(tmp_path / "run", ("squeeze",), changes).run
    assert steps.count == 42 - done
    assert trained(run) == trained(start(tmp_path / "undisturbed", ("squeeze",), changes).run)


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


def test_a_network_with_dropout_resumes_at_the_step(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: Steps
) -> None:
    """Dropout draws from torch's own generators, which no checkpoint holds."""
    plain = networks.ConvNet.__init__

    def with_dropout(self: networks.ConvNet, *args: int) -> None:
        plain(self, *args)
        self.features.append(torch.nn.Dropout(0.5))

    monkeypatch.setattr(networks.ConvNet, "__init__", with_dropout)
    undisturbed = start(tmp_path / "undisturbed", ("squeeze",)).run
    steps.count, steps.stop_in = 0, 2
    with pytest.raises(stop.Interrupted), stop.on_signal():
        start(tmp_path / "run", ("squeeze",))
    torch.manual_seed(12345)
    assert trained(start(tmp_path / "run", ("squeeze",)).run) == trained(undisturbed)
