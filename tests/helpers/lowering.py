"""Compiles every kernel that the packed engine launches in an iteration, for an NVIDIA GPU that need not exist.

Triton gets a driver whose target is that GPU, and each launch compiles its kernel without running it. Tensors are on
the CPU and the network's other operators run there, so launches have the real layouts, alignments and types. The
numbers that come out mean nothing. Run it as a process of its own with TRITON_INTERPRET=0: the interpreter does not
compile.

    python -m helpers.lowering 90 resnet18:224:bfloat16:packed resnet18:64:float32:deterministic

prints a JSON list of `Kernel`s. The last part of a run is `packed`, `deterministic`, an optimisation that is left out
(see `delt_kernels.dispatch`), or `nchw`: the teacher alone, in NCHW.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
import triton
from torch import Tensor, nn
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

SEGMENTS = 8  # as in the published recipe: 8 rounds, and a batch in each
CLASSES = SEGMENTS + 1  # a batch has one class; one batch more than fit into a pass, so that batches are staggered


@dataclass(frozen=True)
class Kernel:
    """What a compiled kernel needs.

    Attributes:
        run: the first that launched it.
        spilled: bytes of local memory per thread, which hold the registers that did not fit.
        shared: bytes of shared memory per program.
        wide: loads and stores of 16 bytes per thread in the code.
    """

    name: str
    run: str
    registers: int
    spilled: int
    shared: int
    wide: int

    @classmethod
    def of(cls, name: str, run: str, compiled: Any) -> "Kernel":
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
            usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        registers, spilled = (int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("REG", "STACK"))  # type: ignore[index]
        wide = len(re.findall(r"\b(?:ld|st)\.global\S*\.v(?:4\.b32|2\.b64)\b", compiled.asm["ptx"]))
        return cls(name, run, registers, spilled, compiled.metadata.shared, wide)


class _Driver:
    """The part of Triton's driver that compilation uses."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiler:
    """From its construction on, kernels are compiled where they would be launched.

    Attributes:
        run: noted in the kernels.
        kernels: by the hash of their compilation.
    """

    def __init__(self, capability: int) -> None:
        from delt_kernels import dispatch

        self.run = ""
        self.kernels: dict[str, Kernel] = {}
        launch = JITFunction.run

        def compile_only(function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
            compiled = launch(function, *args, grid=grid, warmup=True, **kwargs)
            if compiled.hash not in self.kernels:
                self.kernels[compiled.hash] = Kernel.of(function.fn.__name__, self.run, compiled)
            return compiled

        driver.set_active(_Driver(capability))
        JITFunction.run = compile_only
        dispatch._INTERPRETED = True  # operators launch kernels for CPU tensors
        for name in ("empty", "empty_like"):
            setattr(torch, name, _zeroed(getattr(torch, name)))
        Tensor.new_empty = _zeroed(Tensor.new_empty)  # type: ignore[method-assign]


def _zeroed(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Kernels do not write their outputs: memory that happens to hold NaN would stop the engine."""
    return lambda *args, **kwargs: allocate(*args, **kwargs).zero_()


def engine_iteration(network: str, size: int, precision: str, deterministic: bool) -> None:
    """Through `Engine.run`: crop, teacher, loss, backward, the crop's backward, Adam."""
    from delt_hpc.config.schema import Recover
    from delt_hpc.data.catalog.specs import DatasetSpec
    from delt_hpc.recovery.batches import plan
    from delt_hpc.recovery.engine_setup import build_engine
    from delt_hpc.recovery.state import State

    recover = Recover.model_validate(
        {"engine": "packed", "kernels": "triton", "compile": False, "precision": precision, "segments": SEGMENTS}
        | {"deterministic": deterministic, "iterations": SEGMENTS, "round_iterations": 1, "batch_size": SEGMENTS}
    )
    spec = DatasetSpec("toy", CLASSES, size, size, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), True, network)
    batches = plan(CLASSES, SEGMENTS, recover)
    setup = build_engine(_teacher(network, size), recover, spec, 0, batches, device=torch.device("cpu"))
    scheduler = setup.scheduler(batches)
    states = {}
    for scheduled in scheduler.enter():
        states[scheduled.batch.id] = state = State.start(torch.zeros(len(scheduled.batch.entries), 3, size, size))
        setup.engine.enter(scheduled, state)
    running = scheduler.running()
    setup.engine.run(running, [states[scheduled.batch.id] for scheduled in running], 1, lambda images: True)


def nchw_pass(network: str, size: int, precision: str) -> None:
    """Forward and backward of a teacher in NCHW, which the engine does not use."""
    from delt_kernels.teacher.fused import FusedTeacher

    dtype = getattr(torch, precision)
    teacher = FusedTeacher(_teacher(network, size), backend="triton", dtype=dtype)
    images = torch.zeros(4, 3, size, size, dtype=dtype, requires_grad=True)
    logits, distance = teacher(images, torch.tensor([0, 1, 4], dtype=torch.int32))
    (logits.sum() + distance.sum()).backward()


def _teacher(network: str, size: int) -> nn.Module:
    from delt_hpc.models import registry

    return registry.build(network, CLASSES, size).eval().requires_grad_(False)


def main(capability: str, *runs: str) -> None:
    from delt_kernels.dispatch import Optimisation, without

    compiler = Compiler(int(capability))
    for run in runs:
        network, size, precision, mode = run.split(":")
        compiler.run = run
        if mode == "nchw":
            nchw_pass(network, int(size), precision)
        else:
            with without(mode) if mode in get_args(Optimisation) else nullcontext():
                engine_iteration(network, int(size), precision, mode == "deterministic")
    json.dump([asdict(kernel) for kernel in compiler.kernels.values()], sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
