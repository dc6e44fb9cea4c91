"""Finished work that was damaged afterwards is set aside and made again; stopped work does not start over."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.locks import holder
from helpers.toy import FOLDERS, Start, copy_run, images_of

from delt_hpc.context import Context
from delt_hpc.distilled import manifest
from delt_hpc.errors import UserError
from delt_hpc.pipeline import run_stages
from delt_hpc.run import stop
from delt_hpc.run.folder import _host
from delt_hpc.stages.select import select


@pytest.fixture
def copy(finished: Context, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    return copy_run(finished, tmp_path / "run")


def swap_images(run: Path) -> str:
    first, second = (run / "distilled" / FOLDERS[0] / f"0000{i}.png" for i in (0, 1))
    first.write_bytes(second.read_bytes())
    return f"{FOLDERS[0]}/00000.png: its content has changed"


def lose_an_image(run: Path) -> str:
    (run / "distilled" / FOLDERS[3] / "00002.png").unlink()
    return f"{FOLDERS[3]}/00002.png: missing"


def add_an_image(run: Path) -> str:
    (run / "distilled" / FOLDERS[1] / "00009.png").write_bytes(b"")
    return f"{FOLDERS[1]}/00009.png: not in the manifest"


def empty_every_file(run: Path) -> str:
    """What a power loss leaves of files that were never synced."""
    for path in (run / "distilled").rglob("*"):
        if path.is_file() and path.name not in {"done.json", "made_by.json"}:
            path.write_bytes(b"")
    return "is damaged"


@pytest.mark.parametrize("damage", [swap_images, lose_an_image, add_an_image, empty_every_file])
def test_a_damaged_distilled_set_is_named_set_aside_and_made_again(
    finished: Context, start: Start, copy: Path, damage: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    fault = damage(copy)
    run = start(copy, ("aggregate",), quiet=False).run
    assert fault in capsys.readouterr().err
    assert manifest.problems(run.distilled) == []
    assert images_of(run.distilled) == images_of(finished.run.distilled)
    (aside,) = run.broken.iterdir()
    assert aside.name.startswith("distilled-")


def test_a_damaged_distilled_set_stays_where_it_cannot_be_made_again(start: Start, copy: Path) -> None:
    lose_an_image(copy)
    shutil.rmtree(copy / "recover" / "00000-00001")
    with pytest.raises(UserError, match="00000-00001: not finished"):
        start(copy, ("aggregate",))
    assert (copy / "distilled" / "manifest.csv").exists()


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("squeeze", "teacher/weights.safetensors"),
        ("rank", "rank/read_by.json"),
        ("select", f"selected/{FOLDERS[2]}/00001.png"),
        ("recover", "recover/00000-00001/images/00001/00002.png"),
        ("evaluate", "evaluate/convnet3-1-distilled-soft/history.csv"),
    ],
)
@pytest.mark.parametrize("content", [None, b""])
def test_finished_work_with_a_lost_or_empty_file_is_done_again(
    finished: Context, start: Start, copy: Path, stage: str, file: str, content: bytes | None
) -> None:
    (copy / file).unlink() if content is None else (copy / file).write_bytes(content)
    run = start(copy, (stage,)).run
    assert (copy / file).read_bytes() == (finished.run.root / file).read_bytes()
    assert len(list(run.broken.iterdir())) == 1


def test_select_goes_on_with_the_next_class_after_a_stop(
    finished: Context, start: Start, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copy / "selected")
    context = start(copy, ())
    with monkeypatch.context() as patch, pytest.raises(stop.Interrupted):
        patch.setattr(stop, "_requested", [15])
        select(context)
    first = copy / "selected" / FOLDERS[0] / "00000.png"
    before = first.stat().st_mtime_ns
    run = start(copy, ("select",)).run
    assert first.stat().st_mtime_ns == before
    assert images_of(run.selected) == images_of(finished.run.selected)
    assert (run.selected / "selected.csv").read_bytes() == (finished.run.selected / "selected.csv").read_bytes()


def test_select_syncs_each_image_once_and_folders_once_a_class(
    start: Start, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copy / "selected")
    calls, fsync = [], os.fsync

    def counting(handle: int) -> None:
        calls.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", counting)
    start(copy, ("select",))
    images = [path for path in calls if path.endswith(".png")]
    assert len(images) == len(set(images)) == 12
    # For each class its folder and the parent; file and folder of the stamp, selected.csv and the marker.
    folders = [path for path in calls if Path(path).is_dir() or path.endswith(".tmp")]
    assert len(folders) <= 2 * len(FOLDERS) + 2 * 3 + 2


def test_a_second_aggregate_waits_for_the_first(
    finished: Context, start: Start, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "distilled")
    with holder(copy / "locks" / "aggregate", 0, 1) as process:
        threading.Timer(0.5, process.kill).start()
        start(copy, ("aggregate",), quiet=False)
    assert "aggregate: waiting for another process" in capsys.readouterr().err
    assert images_of(copy / "distilled") == images_of(finished.run.distilled)


def test_work_stops_where_the_run_folder_was_deleted(start: Start, copy: Path) -> None:
    context = start(copy, ())
    shutil.rmtree(copy)
    with pytest.raises(UserError, match="was deleted or replaced during the work"):
        run_stages(context, ("squeeze",))
    assert not copy.exists()


def test_a_checkpoint_beside_finished_work_is_removed(copy: Path, start: Start) -> None:
    """A kill between the marker of finished work and the deletion of its checkpoint leaves one."""
    checkpoint = next(folder for folder in sorted((copy / "recover").iterdir()) if folder.is_dir()) / "checkpoint.pt"
    checkpoint.write_bytes(b"left")
    start(copy, ("recover",))
    assert not checkpoint.exists()


def test_temporary_files_of_dead_processes_beside_the_stages_are_removed(copy: Path, start: Start) -> None:
    with holder(copy / "locks" / "none", 0, 1) as process:
        dead = process.pid
    left = [copy / folder / f".some.csv.{_host()}-{dead}-0a1b2c3d.tmp" for folder in ("", "index")]
    for path in left:
        path.touch()
    start(copy, ())
    assert [path for path in left if path.exists()] == []
