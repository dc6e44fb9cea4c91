"""A task in its job: signals, missing inputs, lost GPUs, without Slurm."""

import platform
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.load import load_config
from delt_hpc.launch import markers, queue, records, runner
from delt_hpc.launch.plan import WARM_UP, Task
from delt_hpc.launch.records import LaunchFolder
from delt_hpc.launch.script import EARLY_SIGNALS
from delt_hpc.recovery.warmup import WarmupResult
from delt_hpc.run import late, stop
from delt_hpc.run.folder import RunFolder, write_text


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A task that has ended ignores SIGUSR2; programs that later tests start would inherit that."""
    before = signal.getsignal(signal.SIGUSR2)
    yield
    signal.signal(signal.SIGUSR2, before)


def images(run: Path) -> int:
    return len(list((run / "recover").rglob("*.png")))


def test_the_signal_is_reported_and_ignored_afterwards() -> None:
    requeued: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: requeued.append(number))
    try:
        with stop.on_signal(), runner._stop_on_user_signal(60, lambda number, frame: None) as signalled:
            assert not signalled() and not stop.requested()
            signal.raise_signal(signal.SIGUSR2)
            assert signalled() and stop.requested()
        signal.raise_signal(signal.SIGUSR2)
        assert requeued == []
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_task_that_requests_a_gpu_and_sees_none_fails_before_it_writes_anything(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    task = runner.TaskRunner(str(run), Task("recover", ClassRange(0, 3)), 4, gpu=True, stop_seconds=60)
    write_text(run / "config.yaml", (run / "config.yaml").read_text().replace("device: cpu", "device: auto"))
    with pytest.raises(runner.MissingGpuError, match=f"torch sees none on {platform.node()}"):
        task.execute()
    assert not (run / "recover").exists()
    write_text(run / "config.yaml", (run / "config.yaml").read_text().replace("device: auto", "device: cpu"))
    task.execute()
    assert images(run) == 8


def test_a_signal_before_the_task_could_handle_it_stops_the_task(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "signals", "USR2\nTERM\n")
    monkeypatch.setenv(EARLY_SIGNALS, str(tmp_path / "signals"))
    task = runner.TaskRunner(str(run), Task("recover", ClassRange(0, 3)), 4, gpu=False, stop_seconds=60)
    requeued: list[int] = []
    with pytest.raises(SystemExit) as ended:
        task._execute_recorded(
            LaunchFolder(RunFolder(run)), "7", 0, lambda number, _: requeued.append(number), slurm=False
        )
    assert (ended.value.code, requeued) == (stop.EXIT_CODE, [signal.SIGUSR2])
    assert images(run) == 0


def test_a_task_looks_again_for_inputs_that_appear_late(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = run / "selected" / "done.json"
    content = marker.read_bytes()
    marker.unlink()
    monkeypatch.setattr(time, "sleep", lambda seconds: marker.write_bytes(content))
    runner.TaskRunner(str(run), Task("recover", ClassRange(0, 3)), 4, gpu=False, stop_seconds=60).execute()
    assert images(run) == 8


def test_inputs_that_do_not_appear_are_an_error(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "selected" / "done.json").unlink()
    monkeypatch.setattr(late, "SECONDS", 0)
    task = runner.TaskRunner(str(run), Task("recover", ClassRange(0, 3)), 4, gpu=False, stop_seconds=60)
    with pytest.raises(runner.MissingInputsError, match="select: all"):
        task.execute()


def test_a_marker_that_the_file_system_hides_is_found_by_listing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late, "is_done", lambda folder: False)  # a remembered negative answer
    seen = markers.Markers(load_config(str(run)), RunFolder(run), 4)
    assert seen.missing_inputs("recover") == []


def test_half_written_pickles_of_the_job_are_cleared(tmp_path: Path) -> None:
    own = [tmp_path / "15_1_0_result.pkl.save_tmp", tmp_path / "15_1_submitted.pkl.save_tmp"]
    others = [tmp_path / "15_10_0_result.pkl.save_tmp", tmp_path / "15_1_submitted.pkl"]
    for path in (*own, *others):
        path.touch()
    runner.clear_stale(tmp_path, "15_1")
    assert [path.exists() for path in (*own, *others)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("CUDA error: an uncorrectable ECC error was encountered", True),
        ("CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported", True),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", False),
        ("CUDA error: out of memory", False),
        ("shape '[2]' is invalid for input of size 3", False),
    ],
)
def test_failures_of_a_gpu_and_of_the_program_are_told_apart(text: str, failure: bool) -> None:
    assert runner.is_gpu_failure(RuntimeError(text)) == failure
    try:
        raise ValueError("while recovering") from RuntimeError(text)
    except ValueError as outer:
        assert runner.is_gpu_failure(outer) == failure


def test_a_gpu_that_fails_at_work_moves_the_task_some_times(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_gpu(self: runner.TaskRunner) -> None:  # a fake of work on a GPU that falls off the bus
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(runner.TaskRunner, "execute", lose_gpu)
    monkeypatch.setattr(runner, "_requeue_elsewhere", lambda folder, job, requeue: requeue(signal.SIGUSR2, None))
    task = runner.TaskRunner(str(run), Task("recover", ClassRange(0, 3)), 4, gpu=True, stop_seconds=60, retries=2)
    folder, requeued = LaunchFolder(RunFolder(run)), list[int]()
    for turn in range(4):
        with pytest.raises(SystemExit) as ended:
            task._execute_recorded(folder, "7", turn, lambda number, _: requeued.append(number), slurm=True)
        assert ended.value.code == runner.MISSING_GPU
    assert len(requeued) == 2
    assert [event.event for event in records.events(folder, task.task)] == ["lost_gpu"] * 4
    without = runner.TaskRunner(str(run), Task("recover", ClassRange(0, 3)), 4, gpu=False, stop_seconds=60, retries=2)
    with pytest.raises(RuntimeError, match="CUDA error"):
        without._execute_recorded(folder, "8", 0, lambda number, _: requeued.append(number), slurm=True)
    assert len(requeued) == 2


def test_the_warm_up_compiles_each_shape_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warmed: list[ClassRange] = []

    def record(config: object, folder: RunFolder, classes: ClassRange) -> WarmupResult:  # a fake that compiles nothing
        warmed.append(classes)
        return WarmupResult(folder.root, False, 1.0, 2.0)

    monkeypatch.setattr("delt_hpc.recovery.warmup.warmup", record)
    shapes = (ClassRange(0, 1), ClassRange(2, 2))
    (run / "teacher" / "done.json").unlink()  # it needs no results of earlier stages
    runner.TaskRunner(str(run), WARM_UP, 4, gpu=False, stop_seconds=60, shapes=shapes).execute()
    assert tuple(warmed) == shapes


def test_requeueing_waits_for_the_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["slurm_update error: Unable to contact slurm controller (connect failure)", ""]
    asked: list[tuple[str, ...]] = []

    def call(*command: str) -> str:  # a fake of a controller that is away at first
        asked.append(command)
        if text := answers.pop(0):
            raise queue.QueueRefusedError(text)
        return ""

    def submitits(number: int, frame: object) -> None:
        raise subprocess.CalledProcessError(1, ["scontrol", "requeue", "15_3"])

    monkeypatch.setattr(queue, "call", call)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit) as ended:
        runner._patient(submitits, "15_3")(signal.SIGUSR2, None)
    assert ended.value.code == stop.EXIT_CODE
    assert asked == [("scontrol", "requeue", "15_3")] * 2
    answers[:] = ["Requested operation is presently disabled"]
    with pytest.raises(queue.QueueError, match="presently disabled"):
        runner._patient(submitits, "15_3")(signal.SIGUSR2, None)
