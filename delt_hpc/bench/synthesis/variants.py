"""The engines that are timed side by side, each in several precisions."""

from dataclasses import dataclass
from typing import Literal

import torch

from delt_hpc.bench.synthesis.cases import Case
from delt_hpc.bench.synthesis.engines import Held, HeldPacked, HeldReference
from delt_hpc.config.schema import RecoverPrecision

REFERENCE = "reference"
PRECISIONS: tuple[RecoverPrecision, ...] = ("float32", "tf32", "bfloat16", "float16")


@dataclass(frozen=True)
class Variant:
    """
    Attributes:
        engine: the reference engine, or a backend of the packed engine.
        compiled: by torch.compile.
        packed: the batches of all rounds in one pass; else one batch a pass.
    """

    engine: Literal["reference", "torch", "triton"]
    compiled: bool = False
    packed: bool = False

    def start(self, case: Case, precision: RecoverPrecision, device: torch.device) -> Held:
        if self.engine == "reference":
            return HeldReference(case, device, tf32=precision == "tf32")
        recover = case.recipe.recover(precision=precision, kernels=self.engine, compile=self.compiled, graphs=True)
        return HeldPacked(case, recover, device, packed=self.packed)

    def passes(self, rounds: int) -> list[tuple[int, ...]]:
        """The rounds in each pass that has to be timed."""
        return [tuple(range(rounds))] if self.packed else [(r,) for r in range(rounds)]

    def obstacle(self, precision: RecoverPrecision, device: torch.device) -> str:
        """Why it cannot run here, or nothing."""
        if self.engine == "triton" and device.type == "cpu":
            return "Triton kernels require a GPU; this run is on the CPU"
        return unsupported(precision, device)


def unsupported(precision: RecoverPrecision, device: torch.device) -> str:
    """Why the device does not compute in a precision, or nothing."""
    if precision == "tf32" and (device.type == "cpu" or torch.cuda.get_device_capability(device) < (8, 0)):
        return "this device has no TF32"
    return ""


VARIANTS = {
    REFERENCE: Variant("reference"),
    "torch": Variant("torch"),
    "torch-packed": Variant("torch", packed=True),
    "torch-compiled": Variant("torch", compiled=True),
    "torch-compiled-packed": Variant("torch", compiled=True, packed=True),
    "triton": Variant("triton"),
    "triton-packed": Variant("triton", packed=True),
    "triton-compiled": Variant("triton", compiled=True),
    "triton-compiled-packed": Variant("triton", compiled=True, packed=True),
}
