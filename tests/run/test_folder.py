"""Files and folders appear complete or not at all; a folder of another configuration is refused."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from delt_hpc.errors import UserError
from delt_hpc.run import folder as folder_module
from delt_hpc.run.folder import (
    DONE,
    STAMP,
    RunFolder,
    check_stamp,
    differences,
    is_done,
    mark_done,
    read_json,
    remove_leftovers,
    stage_folders,
    stamp,
    write_csv,
    write_json,
    write_text,
    writing,
    writing_folder,
)


class CrashError(Exception):
    """An error while a file is being written."""


def inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


# --- files


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with writing(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert inside(path.parent) == ["file"]


def test_the_old_content_remains_until_the_new_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with writing(path, "w") as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_crash_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(CrashError), writing(path) as file:
        file.write(b"half of the n")
        raise CrashError
    assert path.read_text() == "old"
    assert inside(tmp_path) == ["file"]


def test_a_crash_leaves_no_new_file(tmp_path: Path) -> None:
    with pytest.raises(CrashError), writing(tmp_path / "file") as file:
        file.write(b"half")
        raise CrashError
    assert inside(tmp_path) == []


def test_a_kill_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    killed = python(
        "import os, signal, sys; from pathlib import Path; from delt_hpc.run.folder import writing\n"
        "with writing(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)",
        str(path),
    )
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


FILLS_UP = """
import errno, resource, sys
from pathlib import Path
from delt_hpc.run.folder import {function}
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
path = Path(sys.argv[1])
try:
    {action}
except OSError as error:
    print("refused by the system", error.errno == errno.EFBIG)
"""


@pytest.mark.parametrize(
    ("function", "action"),
    [
        ("writing", "\n    with writing(path) as file:\n        file.write(bytes(100_000))"),
        ("write_text", "write_text(path, 'n' * 65_537)"),
        ("write_json", "write_json(path, list(range(50_000)))"),
        ("write_csv", "write_csv(path, lambda file: file.writelines('1,2,3\\n' for _ in range(20_000)))"),
    ],
)
def test_a_full_disk_leaves_the_old_file_whole(function: str, action: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    done = python(FILLS_UP.format(function=function, action=action), str(path))
    assert (done.stdout, done.stderr) == ("refused by the system True\n", "")
    assert path.read_text() == "old"
    assert inside(tmp_path) == ["file"]


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "été\r\nA\n")
    assert (tmp_path / "file").read_bytes() == "été\r\nA\n".encode()
    write_csv(tmp_path / "table", lambda file: print("a", "b", sep="\n", file=file))
    assert (tmp_path / "table").read_bytes() == b"a\nb\n"


def test_json_comes_back(tmp_path: Path) -> None:
    content = {"name": "Ångström", "lr": 5e-4, "third": 1 / 3, "none": None, "list": [1, 2]}
    write_json(tmp_path / "file", content)
    assert read_json(tmp_path / "file") == content
    assert "Ångström" in (tmp_path / "file").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b'{"a": 1', b"", b"\xff\xfe"])
def test_damaged_json_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_bytes(content)
    with pytest.raises(UserError, match=r"facts\.json: is damaged") as caught:
        read_json(tmp_path / "facts.json")
    assert "delete it" in caught.value.remedy


# --- folders


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder"
    with writing_folder(path) as temporary:
        assert temporary.parent == path.parent
        (temporary / "a").mkdir()
        (temporary / "a" / "file").write_text("x")
        assert not path.exists()
    assert (path / "a" / "file").read_text() == "x"
    assert inside(path.parent) == ["folder"]


def test_a_crash_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CrashError), writing_folder(tmp_path / "folder") as temporary:
        (temporary / "file").write_text("x")
        raise CrashError
    assert inside(tmp_path) == []


def test_a_full_disk_leaves_no_folder(tmp_path: Path) -> None:
    action = "\n    with writing_folder(path) as folder:\n        (folder / 'file').write_bytes(bytes(100_000))"
    done = python(FILLS_UP.format(function="writing_folder", action=action), str(tmp_path / "folder"))
    assert (done.stdout, done.stderr) == ("refused by the system True\n", "")
    assert inside(tmp_path) == []


def test_only_the_leftovers_of_the_same_folder_are_removed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from delt_hpc.run.folder import writing_folder\n"
        "with writing_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'file').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    for name in ("set [1]", "set [1].p1"):
        assert python(code, str(tmp_path / name)).returncode == -signal.SIGKILL
    other = next(name for name in inside(tmp_path) if name.startswith(".set [1].p1."))
    assert len(inside(tmp_path)) == 2
    with writing_folder(tmp_path / "set [1]") as temporary:
        (temporary / "file").write_text("y")
    assert inside(tmp_path) == sorted(["set [1]", other])


def test_a_folder_with_content_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("x")
    with pytest.raises(OSError, match="not empty"), writing_folder(tmp_path / "folder"):
        pass
    assert (tmp_path / "folder" / "mine").read_text() == "x"
    assert inside(tmp_path) == ["folder"]


# --- stamps

MADE = {"seed": 0, "data.name": "digits", "recover.lr": 0.25, "recover.betas": [0.5, 0.9], "rank.csv": None}


def test_a_folder_without_a_stamp_is_fine_and_gets_one(tmp_path: Path) -> None:
    folder = tmp_path / "rank"
    check_stamp(folder, MADE)
    stamp(folder, MADE)
    assert read_json(folder / STAMP) == MADE
    check_stamp(folder, MADE)
    stamp(folder, MADE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recover.lr": 0.1}, "recover.lr: made with 0.25, now 0.1"),
        ({"recover.betas": [0.9, 0.9]}, "recover.betas: made with [0.5, 0.9], now [0.9, 0.9]"),
        ({"rank.csv": "given.csv"}, "rank.csv: made with None, now 'given.csv'"),
        ({"recover.new": 1}, "recover.new: made with '(nothing)', now 1"),
    ],
)
def test_the_value_that_differs_is_named(change: dict[str, object], message: str, tmp_path: Path) -> None:
    stamp(tmp_path / "rank", MADE)
    for check in (check_stamp, stamp):
        with pytest.raises(UserError, match="was made with another configuration") as caught:
            check(tmp_path / "rank", MADE | change)
        assert [line.strip() for line in caught.value.what.splitlines()[1:]] == [message]
        assert caught.value.where == str(tmp_path / "rank")
        assert "--run" in caught.value.remedy
    assert read_json(tmp_path / "rank" / STAMP) == MADE


def test_differences_of_either_side_are_listed() -> None:
    assert differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 4, "d": 5}) == [
        "b: made with 2, now 4",
        "d: made with '(nothing)', now 5",
        "c: made with 3, now '(nothing)'",
    ]
    assert differences(MADE, dict(reversed(MADE.items()))) == []


def test_a_stage_is_done_once_it_is_marked(tmp_path: Path) -> None:
    assert not is_done(tmp_path)
    mark_done(tmp_path)
    assert is_done(tmp_path)
    mark_done(tmp_path, {"given": "x"})
    assert read_json(tmp_path / DONE) == {"given": "x"}


def test_every_stamped_folder_is_found(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    fixed = [("squeeze", "teacher"), ("rank", "rank"), ("select", "selected"), ("recover", "recover")]
    fixed.append(("aggregate", "distilled"))
    assert [(stage, folder.name) for stage, folder in stage_folders(run)] == fixed
    folder = run.evaluate / "resnet18-small-stem-3407-distilled-soft"
    stamp(folder, MADE)
    assert list(stage_folders(run))[-1] == ("evaluate", folder)


# --- durability


class Disk:
    """Records which files and folders are synced, and which of a folder's contents are not when it is renamed."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.synced: list[Path] = []
        self.unsynced: list[Path] = []
        fsync, rename = os.fsync, Path.rename

        def recording(handle: int) -> None:
            self.synced.append(Path(f"/proc/self/fd/{handle}").readlink())
            fsync(handle)

        def checking(path: Path, target: Path) -> Path:
            self.unsynced += [inside for inside in (path, *path.rglob("*")) if inside not in self.synced]
            return rename(path, target)

        patch.setattr(os, "fsync", recording)
        patch.setattr(Path, "rename", checking)


def test_everything_in_a_folder_is_on_disk_before_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power loss, a renamed folder whose files were not synced would hold empty files."""
    disk = Disk(monkeypatch)
    with writing_folder(tmp_path / "set") as folder:
        (folder / "class").mkdir()
        for number in range(5):
            (folder / "class" / f"{number}.png").write_text("x")
        (folder / "manifest.csv").write_text("y")
    assert disk.unsynced == []
    assert disk.synced[-1] == tmp_path
    assert len(disk.synced) == 6 + 2 + 1  # each file and folder once, then the parent


def leave(folder: Path, name: str, pid: int | str, host: str | None = None, age_s: float = 0.0) -> Path:
    path = folder / f".{name}.{folder_module._host() if host is None else host}-{pid}-0123abcd.tmp"
    path.write_text("half")
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_temporary_files_of_dead_writers_are_removed_and_those_of_living_ones_kept(tmp_path: Path) -> None:
    dead = int(python("import os; print(os.getpid())").stdout)
    removed = [
        leave(tmp_path, "checkpoint.pt", dead),
        leave(tmp_path, "a.csv", 1, host="ffffff", age_s=100_000),
        leave(tmp_path, "b.csv", os.getpid(), age_s=100_000),
    ]
    kept = [
        leave(tmp_path, "c.csv", os.getpid()),
        leave(tmp_path, "d.csv", dead, host="ffffff"),
        tmp_path / ".mine",
        tmp_path / "e.tmp",
    ]
    for path in kept[2:]:
        path.touch()
    remove_leftovers(tmp_path)
    assert not any(path.exists() for path in removed)
    assert all(path.exists() for path in kept)
