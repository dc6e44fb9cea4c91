"""What compilers made, as one folder that tasks start from: a warm start without a shared live cache.

A live cache folder on a network file system breaks compilations of tasks that run at the same time. So one task
compiles and packs what came of it (`pack`); every other copies that to its own local cache folders before it compiles
anything (`unpack`). The folder of a run holds one such pack for each kind of device and version of the compilers.
"""

import os
import platform
import tarfile
import tempfile
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
    """Where this machine's pack lies: in the run folder, or in the folder that the environment variable names."""
    return Path(os.environ.get(VARIABLE) or run / "compile-cache") / _key(device)


def unpack(source: Path) -> bool:
    """Put a pack into this process's caches. Says whether there was one.

    To be called before anything is compiled.
    """
    if not (source / FILES).is_file():
        return False
    with tarfile.open(source / FILES) as archive:
        for name, folder_ in _folders().items():
            folder_.mkdir(parents=True, exist_ok=True)
            members = [member for member in archive.getmembers() if member.name.startswith(f"{name}/")]
            # Beside the cache first: another process may be using what is there.
            with tempfile.TemporaryDirectory(dir=folder_.parent) as fresh:
                archive.extractall(fresh, members, filter="data")
                for member in members:
                    place = folder_ / member.name.removeprefix(f"{name}/")
                    place.parent.mkdir(parents=True, exist_ok=True)
                    if not place.exists():
                        (Path(fresh) / member.name).replace(place)
    if (source / GRAPHS).is_file():
        torch.compiler.load_cache_artifacts((source / GRAPHS).read_bytes())
    return True


def pack(target: Path) -> None:
    """Write what this process compiled, and all compiled kernels in its cache folders, as a pack."""
    made = torch.compiler.save_cache_artifacts()
    if made is not None:
        with writing(target / GRAPHS) as file:
            file.write(made[0])
    # Last: it is what says that the pack is whole.
    with writing(target / FILES) as file, tarfile.open(fileobj=file, mode="w") as archive:
        for name, folder_ in _folders().items():
            for path in sorted(path for path in folder_.rglob("*") if path.is_file()):
                inside = path.relative_to(folder_)
                # Graphs travel in their own file, which can be loaded anywhere; locks do not travel.
                if inside.parts[0] not in ("fxgraph", "aotautograd", "locks"):
                    archive.add(path, f"{name}/{inside}")


def _folders() -> dict[str, Path]:
    """Where Triton keeps kernels and Inductor compiled C++."""
    return {"triton": Path(triton.knobs.cache.dir), "inductor": Path(cache_dir())}


def _key(device: torch.device) -> str:
    name = device_name(device) if device.type == "cuda" else _cpu()
    plain = "".join(character if character.isalnum() else "-" for character in name)
    return f"{plain}-torch{torch.__version__}-triton{triton.__version__}"


def _cpu() -> str:
    """The CPU's instructions: code is compiled for just these."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{digest(flags).hex()[:8]}"
