"""Does this Python environment work: libraries, the compilers that they call, and cache folders?

`python -m delt_hpc.launch.environment QUESTION ANSWER` is the job of `doctor`: it checks that it can read the file
QUESTION, and writes what it finds on its node to ANSWER.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from delt_hpc.errors import UserError
from delt_hpc.run.folder import write_json
from delt_hpc.version import VERSION


@dataclass(frozen=True)
class Finding:
    """One line of `doctor`."""

    level: Literal["OK", "warning", "error"]
    text: str
    remedy: str = ""


DRIVER = Path("/dev/nvidiactl")

# Environment variable, default commands, file suffix, further options: as Triton and Inductor call their compilers.
_COMPILERS = (("CC", ("gcc", "clang"), ".c", ()), ("CXX", ("g++", "clang++"), ".cpp", ("-fopenmp",)))
_CACHES = ("XDG_CACHE_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
_COMPILER_SECONDS = 60.0
_REMEDIES = {
    "compilers": "install a C and a C++ compiler and Python's headers (Debian: g++ python3-dev), or set CC and CXX",
    "caches": "set them to folders that can be written to",
}


def probe() -> dict[str, dict[str, Any]]:
    """Use each part of this environment: its version and more, or the error that it raises. Takes some seconds."""
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "torch": _torch,
        "triton": _triton,
        "DALI": _dali,
        "submitit": _submitit,
        "compilers": _compilers,
        "caches": _caches,
    }
    return {name: _result_or_error(part) for name, part in parts.items()}


def probe_node() -> dict[str, Any]:
    """The environment of a job, and the node it runs on."""
    return {
        "host": os.environ.get("SLURMD_NODENAME", platform.node()),
        "version": VERSION,
        "scontrol": shutil.which("scontrol") is not None,
        "environment": probe(),
    }


def examine() -> Iterator[Finding]:
    """Check this environment. If the machine has an NVIDIA driver or torch sees a GPU, all libraries must see one."""
    yield Finding("OK", f"delt-hpc {VERSION}, Python {platform.python_version()}")
    found = probe()
    yield from judge(found, gpus=bool(found["torch"].get("gpus")) or DRIVER.exists())


def judge(probed: dict[str, dict[str, Any]], *, gpus: bool) -> Iterator[Finding]:
    """Findings about the result of `probe`; `gpus` says whether GPUs are required."""
    for name, found in probed.items():
        required = name == "torch" or (gpus and name != "submitit")
        if "error" in found:
            remedy = _REMEDIES.get(name, "install delt-hpc with its dependencies there")
            yield Finding("error" if required else "warning", f"{name}: {found['error']}", remedy)
        elif gpus and found.get("gpus") == 0:
            remedy = "driver too old? --nv or --gpus missing? CUDA_VISIBLE_DEVICES empty?"
            yield Finding("error", f"{name} {found['version']} sees no GPU", remedy)
        else:
            sees = f" sees {found['gpus']} GPU(s)" if found.get("gpus") else ""
            yield Finding("OK", f"{name} {found['version']}{sees}")


def _result_or_error(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return part()
    except Exception as error:  # a broken installation may raise anything
        return {"error": f"{type(error).__name__}: {error}"}


def _torch() -> dict[str, Any]:
    import torch  # noqa: PLC0415

    return {"version": torch.__version__, "gpus": torch.cuda.device_count() if torch.cuda.is_available() else 0}


def _triton() -> dict[str, Any]:
    import triton  # noqa: PLC0415

    return {"version": triton.__version__}


def _submitit() -> dict[str, Any]:
    import submitit  # noqa: PLC0415

    return {"version": submitit.__version__}


def _dali() -> dict[str, Any]:
    import nvidia.dali  # noqa: PLC0415
    from nvidia.dali import fn, pipeline_def  # noqa: PLC0415

    @pipeline_def(batch_size=1, num_threads=1)  # type: ignore[untyped-decorator]
    def random_number(device: str) -> Any:
        return fn.random.uniform(device=device, range=(0.0, 1.0), shape=[1])

    random_number("cpu", device_id=None).run()
    try:
        random_number("gpu", device_id=0).run()
        gpus = 1
    except Exception:
        gpus = 0
    return {"version": nvidia.dali.__version__, "gpus": gpus}


def _compilers() -> dict[str, Any]:
    return {"version": ", ".join(_compile(*compiler) for compiler in _COMPILERS)}


def _compile(variable: str, names: tuple[str, ...], suffix: str, options: tuple[str, ...]) -> str:
    """Compile a shared library that uses Python's headers; returns the compiler's command."""
    command = os.environ.get(variable) or next((name for name in names if shutil.which(name)), None)
    if command is None:
        raise FileNotFoundError(f"none of {', '.join(names)} is on PATH")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, f"probe{suffix}")
        source.write_text("#include <Python.h>\nint probe(void) { return PY_MAJOR_VERSION; }\n", encoding="utf-8")
        headers = f"-I{sysconfig.get_path('include')}"
        output = str(Path(folder, "probe.so"))
        line = [*shlex.split(command), "-shared", "-fPIC", *options, headers, str(source), "-o", output]
        done = subprocess.run(line, capture_output=True, text=True, timeout=_COMPILER_SECONDS, check=False)
    if done.returncode:
        message = done.stderr.strip().partition("\n")[0]
        raise RuntimeError(f"{command}: exit code {done.returncode}: {message}")
    return command


def _caches() -> dict[str, Any]:
    """Write a file in each cache folder that the environment names."""
    named = {name: os.environ[name] for name in _CACHES if os.environ.get(name)}
    for path in named.values():
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    return {"version": ", ".join(f"{name}={path}" for name, path in named.items()) or "in their default folders"}


if __name__ == "__main__":
    Path(sys.argv[1]).read_text(encoding="utf-8")
    write_json(Path(sys.argv[2]), probe_node())


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them: indices, UUIDs or MIG ids.

    Raises:
        UserError: there is an NVIDIA driver, but the GPUs cannot be listed.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    listed = ""
    if shutil.which("nvidia-smi"):
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        listed = done.stdout if done.returncode == 0 else ""
    found = [str(index) for index in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]
    if not found and DRIVER.exists():
        raise UserError(
            "cannot tell which GPUs this machine has",
            where="nvidia-smi -L",
            remedy="set CUDA_VISIBLE_DEVICES, e.g. 0,1; to use none, set it to an empty text",
        )
    return found
