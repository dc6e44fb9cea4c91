"""Stored soft labels: the same training as with the teacher, made once, whole after a kill, damage or a full disk."""

import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.locks import holder
from helpers.program import Program
from helpers.toy import Start, copy_run

from delt_hpc.context import Context
from delt_hpc.errors import UserError
from delt_hpc.run.folder import RunFolder
from delt_hpc.stages import evaluate as stage

ARM, CLASSES, IMAGES = "distilled-soft", 4, 12
EPOCH = IMAGES * CLASSES * 4  # bytes in float32


def changes(**options: Any) -> dict[str, Any]:
    stored = {"labels": "stored", "label_format": "float32", "arms": [ARM], "seeds": [1], "epochs": 6}
    return {"evaluate": stored | options}


@pytest.fixture
def root(finished: Context, tmp_path: Path) -> Path:
    """A run without evaluation."""
    return copy_run(finished, tmp_path / "run", "aggregate")


@pytest.fixture
def online(finished: Context, start: Start, tmp_path: Path) -> Callable[..., str]:
    """The history of a training with the teacher."""

    def train(**options: Any) -> str:
        other = copy_run(finished, tmp_path / "online", "aggregate")
        return history(start(other, ("evaluate",), changes(labels="online", **options)).run)

    return train


def history(run: RunFolder, student: str = "convnet3") -> str:
    return (run.evaluate / f"{student}-1-{ARM}" / "history.csv").read_text()


def file_of(run: RunFolder) -> Path:
    return run.labels / "distilled-1" / "logits.bin"


@pytest.fixture
def labelled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each call of the teacher."""
    calls: list[int] = []
    plain = stage.teacher_logits

    def counted(network: Any, images: Any, config: Any) -> Any:
        if len(images.shape) == 4:
            calls.append(len(images))
        return plain(network, images, config)

    monkeypatch.setattr(stage, "teacher_logits", counted)
    return calls


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"epochs_kept": 2},
        {"mix": "mixup", "precision": "bfloat16"},
        {"soft_loss": "mse_ce", "teacher_statistics": "batch", "mix": "none"},
    ],
)
def test_float32_gives_the_training_with_the_teacher_bit_for_bit(
    root: Path, start: Start, online: Callable[..., str], options: dict[str, Any]
) -> None:
    run = start(root, ("evaluate",), changes(**options)).run
    assert history(run) == online(**options)
    assert file_of(run).stat().st_size == options.get("epochs_kept", 6) * EPOCH


@pytest.mark.parametrize(("format_", "size", "band"), [("float16", 8, 0.01), ("int8", 12, 0.1), ("top_k", 10, 0.5)])
def test_losses_with_smaller_formats_are_near_those_with_the_teacher(
    root: Path, start: Start, online: Callable[..., str], format_: str, size: int, band: float
) -> None:
    settings = {"precision": "float32", "temperature": 1.0}
    run = start(root, ("evaluate",), changes(label_format=format_, label_top_k=2, **settings)).run
    found, exact = (
        [float(row.split(",")[2]) for row in text.splitlines()[1:]] for text in (history(run), online(**settings))
    )
    assert found != exact
    assert found == pytest.approx(exact, rel=band)
    assert file_of(run).stat().st_size == 6 * IMAGES * size


def test_repeated_epochs_have_the_draws_of_the_kept_ones(root: Path, start: Start, online: Callable[..., str]) -> None:
    kept = history(start(root, ("evaluate",), changes(epochs_kept=2)).run).splitlines()
    every = online().splitlines()
    assert kept[:3] == every[:3]
    assert kept[3] != every[3]


def test_students_share_a_file_whose_size_is_told_first(
    root: Path, start: Start, labelled: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    start(root, ("evaluate",), changes(), quiet=False)
    assert f"the soft labels of distilled-1 take 1.2 kB in {root}/labels/distilled-1" in capsys.readouterr().err
    assert sum(labelled) == 6 * IMAGES
    run = start(root, ("evaluate",), changes(students=["convnet3", "resnet18-small-stem"])).run
    assert sum(labelled) == 6 * IMAGES
    assert history(run, "resnet18-small-stem") != history(run)
    assert [path.name for path in run.labels.iterdir()] == ["distilled-1"]


def test_a_second_process_waits_for_the_file(
    root: Path, start: Start, capsys: pytest.CaptureFixture[str], labelled: list[int]
) -> None:
    with holder(root / "locks" / "labels-distilled-1", 0, 1) as process:
        threading.Timer(0.5, process.kill).start()
        start(root, ("evaluate",), changes(), quiet=False)
    assert "waiting for another process that writes the soft labels of distilled-1" in capsys.readouterr().err
    assert sum(labelled) == 6 * IMAGES


def test_clean_removes_the_files_of_finished_trainings_alone(root: Path, start: Start, program: Program) -> None:
    start(root, (), changes(seeds=[1, 2]))
    run = start(root, ("evaluate",), changes(seeds=[1])).run
    start(root, (), changes(seeds=[1, 2]))
    assert program("clean", root, "--yes").code == 0
    assert file_of(run).exists()
    start(root, (), changes(seeds=[1]))
    assert "stored soft labels of finished trainings" in program("clean", root, "--yes").out
    assert not run.labels.exists()
    before = history(run)
    start(root, ("evaluate",), changes(seeds=[1]))
    assert history(run) == before
    assert not run.labels.exists()


def test_hard_labels_need_no_file(root: Path, start: Start, labelled: list[int]) -> None:
    run = start(root, ("evaluate",), changes(arms=["distilled-hard", ARM], seeds=[1, 2])).run
    assert sorted(path.name for path in run.labels.iterdir()) == ["distilled-1", "distilled-2"]
    assert sum(labelled) == 2 * 6 * IMAGES


class KillError(BaseException):
    """Simulates the death of the process."""


@pytest.mark.parametrize("at", [1, 2, 6, 12])
def test_a_kill_loses_at_most_the_epoch_at_work(
    root: Path, start: Start, online: Callable[..., str], monkeypatch: pytest.MonkeyPatch, labelled: list[int], at: int
) -> None:
    """Six epochs of two batches; killed before batch `at`."""
    plain = stage.teacher_logits

    def killed(*args: Any) -> Any:
        if len(labelled) == at - 1:
            raise KillError
        return plain(*args)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "teacher_logits", killed)
        with pytest.raises(KillError):
            start(root, ("evaluate",), changes())
    assert not file_of(RunFolder(root)).exists()
    labelled.clear()
    run = start(root, ("evaluate",), changes()).run
    assert len(labelled) == 12 - (at - 1) // 2 * 2
    assert history(run) == online()


def test_a_damaged_epoch_of_an_unfinished_file_and_those_after_it_are_made_again(
    root: Path, start: Start, online: Callable[..., str], labelled: list[int]
) -> None:
    run = start(root, ("evaluate",), changes()).run
    (run.labels / "distilled-1" / "done.json").unlink()
    shutil.rmtree(run.evaluate)
    content = bytearray(file_of(run).read_bytes())
    content[4 * EPOCH + 1] ^= 1
    file_of(run).write_bytes(content)
    labelled.clear()
    start(root, ("evaluate",), changes())
    assert sum(labelled) == 2 * IMAGES
    assert history(run) == online()


def test_a_damaged_finished_file_is_set_aside_and_made_again(
    root: Path, start: Start, online: Callable[..., str], labelled: list[int]
) -> None:
    run = start(root, ("evaluate",), changes()).run
    shutil.rmtree(run.evaluate)
    content = bytearray(file_of(run).read_bytes())
    content[-1] ^= 1
    file_of(run).write_bytes(content)
    labelled.clear()
    start(root, ("evaluate",), changes())
    assert sum(labelled) == 6 * IMAGES
    assert history(run) == online()
    (broken,) = run.broken.iterdir()
    assert (broken / "logits.bin").read_bytes() == content


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes; more is an error like that of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


BIG = {"epochs": 40, "validate_every": 40}


def test_a_disk_that_is_full_before_or_during_the_work_is_an_error_with_the_size(
    root: Path, start: Start, monkeypatch: pytest.MonkeyPatch, labelled: list[int]
) -> None:
    config = changes(**BIG, students=["convnet3"])
    start(root, (), config)
    limit, message = 5000, r"distilled-1: the disk is too full for the soft labels, which take 7\.7 kB"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 100, 100))  # type: ignore[attr-defined]
        with pytest.raises(UserError, match=message):
            start(root, ("evaluate",), config)
    assert not labelled
    with largest_file(limit), pytest.raises(UserError, match=message):
        start(root, ("evaluate",), config)
    done = limit // EPOCH
    labelled.clear()
    run = start(root, ("evaluate",), config).run
    assert sum(labelled) == (40 - done) * IMAGES
    assert file_of(run).stat().st_size == 40 * EPOCH


def test_labels_of_another_configuration_are_refused(root: Path, start: Start) -> None:
    run = start(root, ("evaluate",), changes()).run
    shutil.rmtree(run.evaluate)
    with pytest.raises(UserError, match=r"(?s)labels/distilled-1.*label_format: made with 'float32'"):
        start(root, ("evaluate",), changes(label_format="int8"))


def test_as_many_stored_logits_as_classes_are_refused_before_any_work(root: Path, start: Start) -> None:
    with pytest.raises(UserError, match=r"evaluate\.label_top_k: 4"):
        start(root, (), changes(label_format="top_k", label_top_k=4))
