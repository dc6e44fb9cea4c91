"""Kernels compiled for a GPU that need not be there: they lower, use 16-byte accesses, and spill no register."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from triton.backends import backends

# Compiled in a process of its own, since in the interpreter nothing is compiled.
LOWER = """
import json, re, subprocess, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from delt_kernels import bn_stats_kernels, segments

def lower(kernel, types, constants, warps):
    names = [parameter.name for parameter in kernel.params]
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    source = ASTSource(
        kernel,
        signature,
        {(i,): constants[name] for i, name in enumerate(names) if name in constants},
        {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name.endswith("_ptr")},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    with open("kernel.cubin", "wb") as file:
        file.write(compiled.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    usage = subprocess.run([tool, "--dump-resource-usage", "kernel.cubin"], capture_output=True, text=True, check=True)
    return {
        "kernel": kernel.fn.__name__,
        "spilled": int(re.search(r"STACK:(\\d+)", usage.stdout)[1]),
        "stores": re.findall(r"st\\.global\\.v4", compiled.asm["ptx"]),
        "loads": re.findall(r"ld\\.global\\.v4", compiled.asm["ptx"]),
    }

types = dict.fromkeys(["scale_ptr", "shift_ptr", "mean_ptr", "gradient_sums_ptr", "partials_ptr", "sums_ptr"], "*fp32")
images = ["x_ptr", "residual_ptr", "y_ptr", "gradient_ptr", "again_ptr", "gradient_x_ptr", "gradient_residual_ptr"]
types |= dict.fromkeys(images, "*bf16") | {"signs_ptr": "*u8", "offsets_ptr": "*i32"}
rows = []
for innermost in (True, False):
    choose = segments.Tiles.channels_last if innermost else segments.Tiles.planes
    tiles = choose(100, 24, 784, 8)
    constants = dict(
        RELU=True, CHANNELS_LAST=innermost, SIGNS=innermost, ALIGN=tiles.align, BLOCK_R=tiles.block_rows,
        BLOCK_C=tiles.block_channels, GP=tiles.segments, AHEAD=tiles.ahead,
    )
    rows.append(lower(bn_stats_kernels.bn_stats_forward, types, constants | {"RESIDUAL": True}, tiles.warps))
    backward = {"RESIDUAL": not innermost, "AGAIN": True, "GRADIENT_RESIDUAL": True}
    rows.append(lower(bn_stats_kernels.bn_stats_backward, types, constants | backward, tiles.warps))
print(json.dumps(rows))
"""


@pytest.mark.skipif("nvidia" not in backends, reason="this Triton compiles for no NVIDIA GPU")
def test_kernels_lower_for_hopper(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    process = subprocess.run(
        [sys.executable, "-c", LOWER], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    rows = json.loads(process.stdout)
    assert [row["kernel"] for row in rows] == ["bn_stats_forward", "bn_stats_backward"] * 2
    for row in rows:
        assert row["spilled"] == 0 and row["stores"] and row["loads"], row
