"""TensorBoard's event files of a whole run, read back with TensorBoard's own reader."""

import errno
import signal
from pathlib import Path

import pandas as pd
import pytest
from helpers.toy import Start, copy_run, images_of

from delt_hpc.context import Context
from delt_hpc.recovery.batch_folder import CURVE_COLUMNS
from delt_hpc.run import stop
from delt_hpc.training import loop

pytest.importorskip("tensorboard", reason="needs TensorBoard: pip install 'delt-hpc[tensorboard]'")

STAGES = ("squeeze", "rank", "select", "recover", "aggregate", "evaluate")
TRACKED = {"machine": {"tracker": "tensorboard"}, "evaluate": {"arms": ["distilled-soft"]}}


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def assert_equal_to(table: Path, tracked: Path, step: str, columns: tuple[str, ...]) -> None:
    rows, found = pd.read_csv(table), events(tracked)
    assert set(found) == set(columns)
    for name in columns:
        written = rows[[step, name]].dropna()
        assert [at for at, _ in found[name]] == written[step].tolist(), name
        assert [value for _, value in found[name]] == pytest.approx(written[name].tolist(), rel=1e-6), name


def test_the_events_are_the_rows_of_the_csvs_and_change_no_result(
    start: Start, finished: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after stops in every stage, in a training's second epoch and between checkpoints."""
    root, steps, step = tmp_path / "run", [0], loop.Training._step

    def stopping(training: loop.Training, *args: object) -> None:
        step(training, *args)  # type: ignore[arg-type]
        steps[0] += 1
        if steps[0] in (4, 9):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop.Training, "_step", stopping)
    for stages in (("squeeze",), ("squeeze", "rank", "select", "recover", "aggregate", "evaluate")):
        with pytest.raises(stop.Interrupted), stop.on_signal():
            start(root, stages, TRACKED)
    run = start(root, STAGES, TRACKED).run
    epochs = ("lr", "train_loss", "val_accuracy")
    assert_equal_to(run.teacher / "history.csv", run.tracking / "squeeze" / "teacher", "epoch", epochs)
    for trial in ("convnet3-1-distilled-soft", "convnet3-2-distilled-soft"):
        folder = run.tracking / "evaluate" / trial
        assert_equal_to(run.evaluate / trial / "history.csv", folder, "epoch", (*epochs, "ema_accuracy"))
    for batch in ("00000-00001", "00002-00003"):
        folder = run.tracking / "recover" / batch
        assert_equal_to(run.recover / batch / "curve.csv", folder, "iteration", CURVE_COLUMNS[1:])
    assert images_of(run.distilled) == images_of(finished.run.distilled)
    for name in ("teacher/history.csv", "evaluate/convnet3-1-distilled-soft/history.csv"):
        assert (root / name).read_bytes() == (finished.run.root / name).read_bytes()


def test_epochs_that_are_trained_again_after_a_kill_appear_once(
    start: Start, finished: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process leaves events of epochs that no checkpoint has."""
    root = copy_run(finished, tmp_path / "run", "aggregate")
    steps, step = [0], loop.Training._step

    def dying(training: loop.Training, *args: object) -> None:
        steps[0] += 1
        if steps[0] == 4:
            raise KeyboardInterrupt
        step(training, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop.Training, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        start(root, ("evaluate",), TRACKED)
    name = "convnet3-1-distilled-soft"
    assert [at for at, _ in events(root / "tracking" / "evaluate" / name)["train_loss"]] == [0]
    assert not (root / "evaluate" / name / "checkpoint.pt").exists()
    run = start(root, ("evaluate",), TRACKED).run
    assert steps[0] == 4 + 8
    assert [at for at, _ in events(run.tracking / "evaluate" / name)["train_loss"]] == [0, 1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's writing thread ends
def test_a_full_disk_switches_the_tracker_off_and_the_work_goes_on(
    start: Start, finished: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    root = copy_run(finished, tmp_path / "run", "aggregate")
    run = start(root, ("evaluate",), TRACKED, quiet=False).run
    for path in run.evaluate.glob("*/history.csv"):
        assert path.read_bytes() == (finished.run.evaluate / path.parent.name / path.name).read_bytes()
    shown = capsys.readouterr().err
    assert shown.count("the tracker `tensorboard` failed and is switched off") == 1
    assert "No space left on device" in shown
