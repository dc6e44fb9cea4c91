"""The ways to compute a recovery iteration that are measured beside each other."""

from dataclasses import dataclass

import torch

from delt_hpc.bench.synthesis_cases import Case
from delt_hpc.bench.synthesis_runs import Packed, Published, Run
from delt_hpc.config.schema import RecoverPrecision
from delt_hpc.recovery.precision import NumericFormat

REFERENCE = "reference"
PRECISIONS: tuple[RecoverPrecision, ...] = ("float32", "tf32", "bfloat16", "float16")


@dataclass(frozen=True)
class Variant:
    """
    Attributes:
        what: it is, for people.
        packed: by the packed engine; else one batch after the other by the published formula.
        triton: with Triton kernels.
        compiled: by torch.compile.
        together: all rounds in one pass.
        precisions: those it is measured in.
    """

    what: str
    packed: bool = True
    triton: bool = False
    compiled: bool = False
    together: bool = False
    precisions: tuple[RecoverPrecision, ...] = PRECISIONS

    def start(self, case: Case, precision: RecoverPrecision, device: torch.device) -> Run:
        recover = case.recipe.recover(
            precision=precision, kernels="triton" if self.triton else "torch", compile=self.compiled
        )
        if self.packed:
            return Packed(case, device, recover=recover, together=self.together)
        return Published(case, NumericFormat.of(recover, device), device, compiled=self.compiled)

    def passes(self, rounds: int) -> list[tuple[int, ...]]:
        """The rounds of each pass that has to be timed."""
        return [tuple(range(rounds))] if self.together else [(r,) for r in range(rounds)]

    def obstacle(self, precision: RecoverPrecision, device: torch.device) -> str:
        """Why it cannot run here, if so."""
        if self.triton and device.type == "cpu":
            return "there is no GPU for Triton's kernels"
        return missing(precision, device)


def missing(precision: RecoverPrecision, device: torch.device) -> str:
    """Why the device does not compute in a precision, if so."""
    if precision == "tf32" and (device.type == "cpu" or torch.cuda.get_device_capability(device) < (8, 0)):
        return "this device has no TF32"
    return ""


VARIANTS = {
    REFERENCE: Variant(
        "published formula, PyTorch's operators, with cuDNN's search for the fastest, which the reference engine leaves"
        " out; a batch a pass",
        packed=False,
        precisions=("float32", "tf32"),
    ),
    "published-compiled": Variant("published formula, torch.compile; a batch a pass", packed=False, compiled=True),
    "torch": Variant("packed engine, PyTorch's operators; a batch a pass"),
    "torch-packed": Variant("packed engine, PyTorch's operators; all rounds in a pass", together=True),
    "compiled": Variant("packed engine, PyTorch's operators, torch.compile; a batch a pass", compiled=True),
    "compiled-packed": Variant(
        "packed engine, PyTorch's operators, torch.compile; all rounds in a pass", compiled=True, together=True
    ),
    "triton": Variant("packed engine, Triton kernels; a batch a pass", triton=True),
    "triton-packed": Variant("packed engine, Triton kernels; all rounds in a pass", triton=True, together=True),
    "triton-compiled": Variant(
        "packed engine, Triton kernels, torch.compile; a batch a pass", triton=True, compiled=True
    ),
    "triton-compiled-packed": Variant(
        "packed engine, Triton kernels, torch.compile; all rounds in a pass", triton=True, compiled=True, together=True
    ),
}
