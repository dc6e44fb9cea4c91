"""Every launch of the packed engine compiles for GPUs that need not be there, and spills no register."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import pytest
from triton.backends import backends

pytest.importorskip("pydantic")  # the engine needs it, the operators do not
from helpers.lowering import Kernel

TESTS = Path(__file__).parents[1]
# At 224 pixels for the tiles of a real stem; other kernels do not depend on the number of pixels.
RUNS = (
    "resnet18:224:packed",
    "resnet50:64:packed",
    "mobilenet_v2:64:packed",
    "efficientnet_b0:64:packed",
    "densenet121:64:packed",
    "convnet4:64:packed",
    "resnet18:64:deterministic",
    "resnet18:64:nchw",
)
RUNS_OF_OTHER_TYPES = ("resnet18:224:packed", "efficientnet_b0:64:packed")
PASSES = ("bn_stats", "bn_relu_maxpool", "bn_distance", "crop_resize")
NAMES = {"adam_step", "sum_chunks_kernel"} | {f"{name}_{way}" for name in PASSES for way in ("forward", "backward")}
GPUS = [pytest.param(80, marks=pytest.mark.slow), 90, pytest.param(100, marks=pytest.mark.slow)]
PRECISIONS = ["bfloat16", *[pytest.param(name, marks=pytest.mark.slow) for name in ("float16", "float32")]]


def lowered(capability: int, precision: str, runs: Sequence[str], cache: Path) -> list[Kernel]:
    paths = os.pathsep.join(map(str, (TESTS, TESTS.parent, TESTS.parent / "kernels")))
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache), "PYTHONPATH": paths}
    command = [sys.executable, "-m", "helpers.lowering", str(capability), precision, *runs]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return [Kernel(**row) for row in json.loads(process.stdout)]


def table(kernels: list[Kernel]) -> str:
    """One row per kernel: the most that one of its variants needs, and 16-byte accesses."""
    lines = [f"{'kernel':26} variants  registers  spilled  shared  16-byte accesses"]
    for name, group in groupby(sorted(kernels, key=attrgetter("name")), attrgetter("name")):
        rows = list(group)
        registers, spilled, shared = (
            max(getattr(row, what) for row in rows) for what in ("registers", "spilled", "shared")
        )
        wide = sorted(row.wide for row in rows)
        lines.append(f"{name:26} {len(rows):8}  {registers:9}  {spilled:7}  {shared:6}  {wide[0]} to {wide[-1]}")
    return "\n".join(lines)


@pytest.mark.skipif("nvidia" not in backends, reason="this Triton does not compile for NVIDIA GPUs")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("capability", GPUS)
def test_every_launch_compiles(capability: int, precision: str, tmp_path: Path) -> None:
    runs = RUNS if precision == "bfloat16" else RUNS_OF_OTHER_TYPES
    kernels = lowered(capability, precision, runs, tmp_path)
    of_engine = [kernel for kernel in kernels if not kernel.run.endswith("nchw")]
    print(f"sm_{capability}, {precision}\n{table(of_engine)}")
    assert {kernel.name for kernel in kernels} == NAMES
    assert [kernel for kernel in kernels if kernel.spilled] == []
    # The passes over activations and images, which memory bandwidth limits, must use 16-byte accesses.
    passes = [kernel for kernel in of_engine if kernel.name.startswith(("adam", "bn_stats", "bn_relu"))]
    assert [kernel for kernel in passes if not kernel.wide] == []
