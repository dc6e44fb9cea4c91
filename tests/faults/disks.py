"""Disks to attack: an ext4 file system in a file, and a small one in memory. Both need root and the right to mount."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE_MIB = 48


def possible(folder: Path) -> bool:
    """Whether disks can be mounted here."""
    try:
        with loop_disk(folder), memory_disk(folder, 64):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def loop_disk(folder: Path) -> Iterator[tuple[Path, Path]]:
    """An empty ext4 disk that turns read-only at an error: the mounted folder, and the file that it is in."""
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(SIZE_MIB * 2**20)
    _command("mkfs.ext4", "-q", "-F", str(image))
    with _mounted(folder / "disk", "-o", "loop,errors=remount-ro", str(image)) as mounted:
        yield mounted, image


@contextmanager
def memory_disk(folder: Path, kib: int) -> Iterator[Path]:
    """An empty disk of that size."""
    with _mounted(folder / "memory", "-t", "tmpfs", "-o", f"size={kib}k", "none") as mounted:
        yield mounted


@contextmanager
def after_power_loss(folder: Path, image: Path) -> Iterator[Path]:
    """What a power loss at this moment leaves of a disk: only what has reached the file that it is in."""
    copy = folder / "crashed.img"
    while True:
        content = image.read_bytes()
        if image.read_bytes() == content:  # nothing was written meanwhile
            break
    copy.write_bytes(content)
    with _mounted(folder / "crashed", "-o", "loop", str(copy)) as mounted:
        yield mounted


def break_disk(mounted: Path) -> None:
    """Let the file system find an error: from now on it is read-only."""
    device = _command("findmnt", "-no", "SOURCE", str(mounted)).strip()
    Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error").write_text("attack")


@contextmanager
def _mounted(folder: Path, *arguments: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    _command("mount", *arguments, str(folder))
    try:
        yield folder
    finally:
        _command("umount", "--lazy", str(folder))


def _command(*arguments: str) -> str:
    sbin = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, env=os.environ | sbin)
    return done.stdout
