"""What `doctor` runs on a node: `python -m delt_hpc.launch.probe QUESTION ANSWER`."""

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from delt_hpc.launch import environment
from delt_hpc.run.folder import write_json
from delt_hpc.version import VERSION


def look() -> dict[str, Any]:
    """This node as a job sees it."""
    return {
        "host": os.environ.get("SLURMD_NODENAME", platform.node()),
        "version": VERSION,
        "scontrol": shutil.which("scontrol") is not None,
        "environment": environment.look(),
    }


if __name__ == "__main__":
    Path(sys.argv[1]).read_text(encoding="utf-8")
    write_json(Path(sys.argv[2]), look())
