"""What `doctor` runs on a node: `python -m delt_hpc.launch.probe QUESTION ANSWER`."""

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from delt_hpc.run_folder import write_json
from delt_hpc.version import VERSION


def look() -> dict[str, Any]:
    """This node as a job sees it."""
    return {
        "host": os.environ.get("SLURMD_NODENAME", platform.node()),
        "version": VERSION,
        "scontrol": shutil.which("scontrol") is not None,
        "torch": _torch(),
        "DALI": _dali(),
    }


def _torch() -> dict[str, Any]:
    try:
        import torch  # noqa: PLC0415
    except Exception as error:  # whatever a broken installation raises is the finding
        return {"error": f"{type(error).__name__}: {error}"}
    return {"version": torch.__version__, "gpus": torch.cuda.device_count() if torch.cuda.is_available() else 0}


def _dali() -> dict[str, Any]:
    try:
        import nvidia.dali  # noqa: PLC0415
        from nvidia.dali import fn, pipeline_def  # noqa: PLC0415
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}

    @pipeline_def(batch_size=1, num_threads=1, device_id=0)  # type: ignore[untyped-decorator]
    def drawing() -> Any:
        return fn.random.uniform(device="gpu", range=(0.0, 1.0), shape=[1])

    try:
        drawing().run()
        gpus = 1
    except Exception:
        gpus = 0
    return {"version": nvidia.dali.__version__, "gpus": gpus}


if __name__ == "__main__":
    Path(sys.argv[1]).read_text(encoding="utf-8")
    write_json(Path(sys.argv[2]), look())
