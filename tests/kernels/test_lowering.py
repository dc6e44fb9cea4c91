"""Every launch of the packed engine compiles for GPUs that need not be there, and spills no register."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from triton.backends import backends

pytest.importorskip("pydantic")  # the engine needs it, the operators do not
from helpers.lowering import Kernel

# Both ways through the stem with these numbers of images; prints how often each kernel was compiled.
STEM = """
import json, sys
from collections import Counter
import torch
from helpers.lowering import Compiler
from delt_kernels.bn_relu_maxpool import bn_relu_maxpool
compiler = Compiler(90)
for images in map(int, sys.argv[1:]):
    x = torch.zeros(images, 64, 32, 32, dtype=torch.bfloat16).to(memory_format=torch.channels_last).requires_grad_()
    offsets = torch.tensor([0, images // 2, images], dtype=torch.int32)
    pooled, sums = bn_relu_maxpool(x, *torch.ones(3, 64), offsets, backend="triton")
    (pooled.sum() + sums.sum()).backward()
print(json.dumps(Counter(kernel.name for kernel in compiler.kernels.values())))
"""
TESTS = Path(__file__).parents[1]
# At 224 pixels for the tiles of a real stem; other kernels do not depend on the number of pixels.
RUNS = {
    "bfloat16": (
        "resnet18:224:bfloat16:packed",
        "resnet50:64:bfloat16:packed",
        "mobilenet_v2:64:bfloat16:packed",
        "efficientnet_b0:64:bfloat16:packed",
        "densenet121:64:bfloat16:packed",
        "convnet4:64:bfloat16:packed",
        "resnet18:64:bfloat16:deterministic",
        "resnet18:64:bfloat16:relu_bitmask",
        # What torch.compile launches: it adds the gradients of two readers by itself.
        *(f"{network}:64:bfloat16:bn_stats_fork" for network in ("resnet50", "mobilenet_v2", "efficientnet_b0")),
    ),
    "other types": (
        "resnet18:224:float32:packed",
        "resnet18:64:float32:deterministic",
        "efficientnet_b0:64:float32:packed",
        "resnet18:224:float16:packed",
    ),
    "NCHW": ("resnet18:64:bfloat16:nchw",),
}
PASSES = ("bn_stats", "bn_relu_maxpool", "bn_distance", "crop_resize")
OF_IMAGES = {"adam_step", "crop_resize_forward", "crop_resize_backward"}
NAMES = {"adam_step", "sum_chunks_kernel"} | {f"{name}_{way}" for name in PASSES for way in ("forward", "backward")}
# The first is in `make test`, and the longest ones start first.
CASES = [
    ("bfloat16", 90),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in [("bfloat16", 80), ("bfloat16", 100)]),
    *(pytest.param("other types", capability, marks=pytest.mark.slow) for capability in (80, 90, 100)),
    pytest.param("NCHW", 90, marks=pytest.mark.slow),  # the engine does not use it
]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of compiled kernels, shared by all workers, so that each kernel is compiled once."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "triton-cache"


def compiled(cache: Path, *arguments: str) -> Any:
    """What a process that compiles prints, which is JSON."""
    paths = os.pathsep.join(map(str, (TESTS, TESTS.parent, TESTS.parent / "kernels")))
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache), "PYTHONPATH": paths}
    command = [sys.executable, *arguments]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def lowered(capability: int, runs: Sequence[str], cache: Path) -> list[Kernel]:
    return [Kernel(**row) for row in compiled(cache, "-m", "helpers.lowering", str(capability), *runs)]


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
@pytest.mark.parametrize(("kind", "capability"), CASES)
def test_every_launch_compiles(kind: str, capability: int, cache: Path) -> None:
    kernels = lowered(capability, RUNS[kind], cache)
    print(f"sm_{capability}, {kind}\n{table(kernels)}")
    assert {kernel.name for kernel in kernels} == (NAMES if kind != "NCHW" else NAMES - OF_IMAGES)
    assert [kernel for kernel in kernels if kernel.spilled] == []
    # The passes over activations and images, which memory bandwidth limits, must use 16-byte accesses.
    passes = [kernel for kernel in kernels if kernel.name.startswith(("adam", "bn_stats", "bn_relu"))]
    assert [kernel for kernel in passes if not kernel.wide] == [] or kind == "NCHW"


@pytest.mark.skipif("nvidia" not in backends, reason="this Triton does not compile for NVIDIA GPUs")
def test_one_stem_kernel_is_for_all_numbers_of_images(cache: Path) -> None:
    names = ("bn_relu_maxpool_forward", "bn_relu_maxpool_backward", "sum_chunks_kernel")
    assert compiled(cache, "-c", STEM, "2", "600", "1200") == dict.fromkeys(names, 1)
