"""In which numbers the network computes. Images, moments, statistics and losses stay in float32, or float64."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from delt_hpc.config.schema import Recover
from delt_hpc.errors import UserError


@dataclass(frozen=True)
class Precision:
    """
    Attributes:
        network: type of the activations and the weights; None: as the teacher's.
        tf32: may float32 products be rounded to TensorFloat-32 on the way?
        loss_scale: what the loss is multiplied by before the backward pass, so that small gradients are not lost.
    """

    network: torch.dtype | None = None
    tf32: bool = False
    loss_scale: float = 1.0

    @staticmethod
    def of(recover: Recover, device: torch.device) -> "Precision":
        chosen = recover.precision
        if chosen == "auto":
            chosen = "bfloat16" if device.type == "cuda" else "float32"
        if chosen in ("float32", "tf32"):
            return Precision(None, chosen == "tf32")
        if chosen == "float16":
            return Precision(torch.float16, loss_scale=recover.loss_scale)
        return Precision(torch.bfloat16)


def check(recover: Recover, device: torch.device) -> None:
    """Refuse what the device cannot do.

    Raises:
        UserError: it is a CPU.
    """
    if device.type == "cpu" and recover.precision in ("tf32", "float16"):
        raise UserError(
            "is of GPUs, and the device is a CPU",
            where=f"recover.precision: {recover.precision}",
            expected="auto, float32 or bfloat16",
        )
    if device.type == "cpu" and recover.kernels == "triton":
        raise UserError("Triton kernels run on GPUs, and the device is a CPU", where="recover.kernels: triton")


@contextmanager
def backends(tf32: bool, deterministic: bool) -> Iterator[None]:
    """PyTorch's switches inside: TF32, fixed algorithms, or the search for the fastest ones.

    Raises:
        RuntimeError: inside, by a layer that PyTorch has no fixed algorithm for.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS wants for fixed results
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic
    fixed, fill = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    cudnn.allow_tf32 = matmul.allow_tf32 = tf32
    cudnn.benchmark, cudnn.deterministic = not deterministic, deterministic
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic = before
        torch.use_deterministic_algorithms(fixed)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
