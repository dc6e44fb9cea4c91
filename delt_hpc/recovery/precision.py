"""The number format of the network. Images, Adam's moments, statistics and losses are float32 in any case."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from delt_hpc.config.schema import Recover
from delt_hpc.errors import UserError
from delt_hpc.recovery.auto import resolve_auto


@dataclass(frozen=True)
class NumericFormat:
    """
    Attributes:
        network_dtype: of weights and activations; None: the teacher's own.
        tf32: whether float32 convolutions and matrix products may use TensorFloat-32.
        loss_scale: the loss is multiplied by it before the backward pass, so that small gradients do not underflow.
    """

    network_dtype: torch.dtype | None = None
    tf32: bool = False
    loss_scale: float = 1.0

    @staticmethod
    def of(recover: Recover, device: torch.device) -> "NumericFormat":
        chosen = resolve_auto(recover, device).precision
        if chosen in ("float32", "tf32"):
            return NumericFormat(None, chosen == "tf32")
        if chosen == "float16":
            return NumericFormat(torch.float16, loss_scale=recover.loss_scale)
        return NumericFormat(torch.bfloat16)


def check_device(recover: Recover, device: torch.device) -> None:
    """Refuse options that the device does not support.

    Raises:
        UserError: an option requires a GPU, and the device is a CPU.
    """
    if device.type != "cpu":
        return
    if recover.precision in ("tf32", "float16"):
        raise _requires_gpu(f"recover.precision: {recover.precision}", "auto, float32 or bfloat16")
    if recover.kernels == "triton":
        raise _requires_gpu("recover.kernels: triton", "auto or torch")
    if recover.graphs is True:
        raise _requires_gpu("recover.graphs: true", "auto or false")


def _requires_gpu(where: str, expected: str) -> UserError:
    return UserError("requires a GPU; this run is on the CPU", where=where, expected=expected)


@contextmanager
def backend_flags(*, tf32: bool, deterministic: bool = False, cudnn_benchmark: bool = True) -> Iterator[None]:
    """Set PyTorch's global flags for TF32 and algorithm choice, and restore them afterwards.

    Args:
        deterministic: deterministic algorithms only; operations without one raise RuntimeError.
        cudnn_benchmark: let cuDNN measure which of its algorithms is fastest; off with `deterministic`.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without it
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic
    deterministic_before = torch.are_deterministic_algorithms_enabled()
    fill_before = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    cudnn.allow_tf32 = matmul.allow_tf32 = tf32
    cudnn.benchmark, cudnn.deterministic = cudnn_benchmark and not deterministic, deterministic
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic = before
        torch.use_deterministic_algorithms(deterministic_before)
        torch.utils.deterministic.fill_uninitialized_memory = fill_before  # type: ignore[attr-defined]
