"""Is an environment whole: the libraries, the compilers they call at run time, the caches these fill?"""

import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from delt_hpc.launch.finding import Finding
from delt_hpc.version import VERSION

# (variable that names it, names it is looked for by, suffix of its language, more options): as Triton and Inductor do.
_COMPILERS = (("CC", ("gcc", "clang"), ".c", ()), ("CXX", ("g++", "clang++"), ".cpp", ("-fopenmp",)))
_CACHES = ("XDG_CACHE_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
_SECONDS = 60.0


def look() -> dict[str, Any]:
    """This environment by use, each part a version and more, or the error it raises. Takes some seconds."""
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "torch": _torch,
        "triton": _triton,
        "DALI": _dali,
        "submitit": _submitit,
        "compilers": _compilers,
        "caches": _caches,
    }
    return {name: _tried(part) for name, part in parts.items()}


def examine() -> Iterator[Finding]:
    """This environment; where torch sees a GPU the rest must too."""
    yield Finding("OK", f"delt-hpc {VERSION}, Python {platform.python_version()}")
    seen = look()
    yield from judge(seen, gpus=bool(seen["torch"].get("gpus")))


def judge(seen: dict[str, Any], *, gpus: bool) -> Iterator[Finding]:
    """What `look` found; `gpus`: they are wanted."""
    for name, found in seen.items():
        vital = name == "torch" or (gpus and name != "submitit")
        if "error" in found:
            yield Finding("error" if vital else "warning", f"{name}: {found['error']}", _REMEDIES.get(name, _INSTALL))
        elif gpus and found.get("gpus") == 0:
            yield Finding("error", f"{name} {found['version']} sees no GPU", "driver too old? --nv or --gpus missing?")
        else:
            sees = f" sees {found['gpus']} GPU(s)" if found.get("gpus") else ""
            yield Finding("OK", f"{name} {found['version']}{sees}")


_INSTALL = "install delt-hpc with all it depends on there"
_REMEDIES = {
    "compilers": "install a C and C++ compiler and Python's headers (Debian: g++ python3-dev), or set CC and CXX",
    "caches": "let them name folders that can be written to",
}


def _tried(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return part()
    except Exception as error:  # whatever a broken installation raises is the finding
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
    def drawing(device: str) -> Any:
        return fn.random.uniform(device=device, range=(0.0, 1.0), shape=[1])

    drawing("cpu", device_id=None).run()
    try:
        drawing("gpu", device_id=0).run()
        gpus = 1
    except Exception:
        gpus = 0
    return {"version": nvidia.dali.__version__, "gpus": gpus}


def _compilers() -> dict[str, Any]:
    """Each makes a library against Python's headers."""
    return {"version": ", ".join(_compiled(*compiler) for compiler in _COMPILERS)}


def _compiled(variable: str, names: tuple[str, ...], suffix: str, options: tuple[str, ...]) -> str:
    command = os.environ.get(variable) or next((name for name in names if shutil.which(name)), None)
    if command is None:
        raise FileNotFoundError(f"none of {', '.join(names)} is on PATH")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, f"probe{suffix}")
        source.write_text("#include <Python.h>\nint probe(void) { return PY_MAJOR_VERSION; }\n", encoding="utf-8")
        headers = f"-I{sysconfig.get_path('include')}"
        output = str(Path(folder, "probe.so"))
        line = [*shlex.split(command), "-shared", "-fPIC", *options, headers, str(source), "-o", output]
        done = subprocess.run(line, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        said = done.stderr.strip().partition("\n")[0]
        raise RuntimeError(f"{command}: exit code {done.returncode}: {said}")
    return command


def _caches() -> dict[str, Any]:
    """Every folder of a cache that the environment names takes a file."""
    given = {name: os.environ[name] for name in _CACHES if os.environ.get(name)}
    for path in given.values():
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    return {"version": ", ".join(f"{name}={path}" for name, path in given.items()) or "at their own places"}
