"""The accuracy that the kernels' tests require."""

import torch
from torch import Tensor


def assert_no_worse(ours: Tensor, theirs: Tensor, exact: Tensor) -> None:
    """The largest error is at most twice that of PyTorch in the same type.

    One unit in the last place of the largest value is allowed in addition (four in float32): PyTorch's error on few
    numbers may be small by chance, and the interpreter truncates bfloat16 where a GPU rounds, and sums one by one where
    a GPU sums in a tree.
    """
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape == exact.shape
    assert exact.dtype == torch.float64
    if not exact.numel():
        return
    slack = (4 if ours.dtype == torch.float32 else 1) * torch.finfo(ours.dtype).eps * exact.abs().max()
    error, allowed = (ours - exact).abs().max(), 2 * (theirs - exact).abs().max() + slack
    assert error <= allowed, f"error {error:.3g} in {ours.dtype}; at most {allowed:.3g} is allowed"
