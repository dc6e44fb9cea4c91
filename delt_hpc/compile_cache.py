"""What compilers made, as one folder that tasks start from: a warm start without a shared live cache.

A live cache folder on a network file system breaks compilations of tasks that run at the same time. So one task
compiles and packs what came of it (`pack`); every other copies that to its own local cache folders before it compiles
anything (`unpack`). The folder of a run holds one such pack for each kind of device and version of the compilers.
"""

import os
import platform
import tarfile
from io import BytesIO
from pathlib import Path

import torch
import triton

from delt_hpc.run_folder import writing
from delt_hpc.timing import device_name

VARIABLE = "DELT_COMPILE_CACHE"
INDUCTOR, KERNELS = "inductor.bin", "triton.tar"


def folder(run: Path, device: torch.device) -> Path:
    """Where this machine's pack lies: in the run folder, or in the folder that the environment variable names."""
    return Path(os.environ.get(VARIABLE) or run / "compile-cache") / _key(device)


def unpack(source: Path) -> bool:
    """Put a pack into this process's caches. Says whether there was one.

    To be called before anything is compiled.
    """
    if not (source / KERNELS).is_file():
        return False
    kernels = kernel_cache()
    kernels.mkdir(parents=True, exist_ok=True)
    with tarfile.open(source / KERNELS) as archive:
        archive.extractall(kernels, filter="data")
    artifacts = source / INDUCTOR
    if artifacts.is_file():
        torch.compiler.load_cache_artifacts(artifacts.read_bytes())
    return True


def pack(target: Path) -> None:
    """Write what this process compiled, and all compiled kernels in its cache folder, as a pack."""
    made = torch.compiler.save_cache_artifacts()
    if made is not None:
        with writing(target / INDUCTOR) as file:
            file.write(made[0])
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        if kernel_cache().is_dir():
            archive.add(kernel_cache(), arcname=".")
    # Last: it is what says that the pack is whole.
    with writing(target / KERNELS) as file:
        file.write(buffer.getbuffer())


def kernel_cache() -> Path:
    """Triton's cache folder."""
    return Path(triton.knobs.cache.dir)


def _key(device: torch.device) -> str:
    name = device_name(device) if device.type == "cuda" else platform.machine()
    plain = "".join(character if character.isalnum() else "-" for character in name)
    return f"{plain}-torch{torch.__version__}-triton{triton.__version__}"
