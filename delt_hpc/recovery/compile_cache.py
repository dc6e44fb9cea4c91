"""Packs of compiled code, from which the tasks of a run start without compiling again.

Tasks must not share a compiler's cache folder on a network file system: concurrent compilations fail there. Instead,
one task compiles and writes its caches as a pack (`pack`), and every other task copies the pack into its own local
caches before it compiles (`unpack`). A run folder holds one pack for each device type and compiler version.
"""

import os
import platform
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import triton
from torch._inductor.runtime.cache_dir_utils import cache_dir

from delt_hpc.keyed_random import digest
from delt_hpc.run.folder import writing
from delt_hpc.run.timing import device_name

VARIABLE = "DELT_COMPILE_CACHE"
GRAPHS, FILES = "graphs.bin", "files.tar"


def folder(run: Path, device: torch.device) -> Path:
    """The folder of the pack for this device: in the run folder, or in the folder that DELT_COMPILE_CACHE names."""
    return Path(os.environ.get(VARIABLE) or run / "compile-cache") / _key(device)


def unpack(source: Path) -> bool:
    """Copy a pack into the caches of this process. Call it before anything is compiled.

    Returns:
        whether there is a pack.
    """
    if not (source / FILES).is_file():
        return False
    with tarfile.open(source / FILES) as archive:
        for name, folder_ in _folders().items():
            folder_.mkdir(parents=True, exist_ok=True)
            members = [member for member in archive.getmembers() if member.name.startswith(f"{name}/")]
            # Extracted beside the cache and then moved: another process may be using the same cache.
            with tempfile.TemporaryDirectory(dir=folder_.parent) as fresh:
                archive.extractall(fresh, members, filter="data")
                for member in members:
                    path = folder_ / member.name.removeprefix(f"{name}/")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if not path.exists():
                        (Path(fresh) / member.name).replace(path)
    if (source / GRAPHS).is_file():
        torch.compiler.load_cache_artifacts((source / GRAPHS).read_bytes())
    return True


@contextmanager
def private() -> Iterator[None]:
    """Inside, this process compiles into new, empty caches, so that `pack` takes nothing of earlier programs."""
    names = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory(prefix="delt-hpc-", ignore_cleanup_errors=True) as scratch:
        os.environ |= {name: str(Path(scratch) / name) for name in names}
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def pack(target: Path) -> None:
    """Write the graphs that this process compiled, and the files in its cache folders, as a pack."""
    artifacts = torch.compiler.save_cache_artifacts()
    if artifacts is not None:
        with writing(target / GRAPHS) as file:
            file.write(artifacts[0])
    # Written last, because `unpack` takes its existence as the sign of a complete pack.
    with writing(target / FILES) as file, tarfile.open(fileobj=file, mode="w") as archive:
        for name, folder_ in _folders().items():
            for path in sorted(path for path in folder_.rglob("*") if path.is_file()):
                inside = path.relative_to(folder_)
                # Graphs are in their own file, which does not depend on cache paths; locks are not copied.
                if inside.parts[0] not in ("fxgraph", "aotautograd", "locks"):
                    archive.add(path, f"{name}/{inside}")


def _folders() -> dict[str, Path]:
    """The cache folders of Triton (kernels) and Inductor (compiled C++)."""
    return {"triton": Path(triton.knobs.cache.dir), "inductor": Path(cache_dir())}


def _key(device: torch.device) -> str:
    name = device_name(device) if device.type == "cuda" else _cpu()
    plain = "".join(character if character.isalnum() else "-" for character in name)
    return f"{plain}-torch{torch.__version__}-triton{triton.__version__}"


def _cpu() -> str:
    """The CPU's instruction set, for which code is compiled."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{digest(flags).hex()[:8]}"
