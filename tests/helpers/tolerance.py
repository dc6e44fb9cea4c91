"""The rule of accuracy of the kernels' tests."""

import torch
from torch import Tensor


def assert_no_worse(ours: Tensor, theirs: Tensor, exact: Tensor) -> None:
    """The largest error is at most twice that of PyTorch in the same type.

    One unit in the last place of the largest value is free (four in float32): on few numbers PyTorch's error is small
    by luck, and the interpreter cuts bfloat16 off where a GPU rounds, and adds one by one where a GPU adds in a tree.
    """
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape == exact.shape
    assert exact.dtype == torch.float64
    if not exact.numel():
        return
    free = (4 if ours.dtype == torch.float32 else 1) * torch.finfo(ours.dtype).eps * exact.abs().max()
    error, allowed = (ours - exact).abs().max(), 2 * (theirs - exact).abs().max() + free
    assert error <= allowed, f"error {error:.3g}; PyTorch's in {ours.dtype} allows {allowed:.3g}"
