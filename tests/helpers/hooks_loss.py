"""The loss of packed segments: by a fused teacher, and segment by segment by the reference objective."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delt_hpc.recovery.objective import Objective
from delt_kernels.teacher.fused import FusedTeacher

R_BN, FIRST_WEIGHT = 0.05, 10.0
OFFSETS = [0, 2, 2, 3, 5]  # with an empty segment and one of a single image


def randomised(network: nn.Module) -> nn.Module:
    """The network, frozen, in evaluation mode, with random running statistics and affine weights."""
    for module in network.modules():
        if not isinstance(module, nn.BatchNorm2d):
            continue
        if module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
        if module.affine:
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, 0, 0.1)
    return network.eval().requires_grad_(False)


def batch(size: int, offsets: list[int] = OFFSETS) -> tuple[Tensor, Tensor]:
    """Images float64 [N, 3, size, size] and labels in 0..9."""
    images = torch.randn(offsets[-1], 3, size, size, dtype=torch.float64)
    return images, torch.randint(0, 10, (offsets[-1],))


def packed(teacher: nn.Module, images: Tensor, labels: Tensor, offsets: list[int] = OFFSETS) -> tuple[Tensor, Tensor]:
    """Sum over segments of mean cross-entropy + r * distance, and its gradient with respect to the images."""
    images = images.detach().clone().requires_grad_()
    logits, distance = teacher(images, torch.tensor(offsets, dtype=torch.int32, device=images.device))
    weights = torch.zeros(len(images), dtype=logits.dtype, device=images.device)
    for first, end in pairwise(offsets):
        weights[first:end] = 1 / max(1, end - first)
    loss = (F.cross_entropy(logits, labels, reduction="none") * weights).sum() + R_BN * distance.sum()
    (gradient,) = torch.autograd.grad(loss, images)
    return loss.detach(), gradient


def by_hooks(teacher: nn.Module, images: Tensor, labels: Tensor, offsets: list[int] = OFFSETS) -> tuple[Tensor, Tensor]:
    """The same by the reference objective's hooks, one segment at a time."""
    images = images.detach().clone().requires_grad_()
    loss = torch.zeros((), dtype=images.dtype)
    with Objective(teacher, R_BN, FIRST_WEIGHT) as objective:
        for first, end in pairwise(offsets):
            if end > first:
                loss = loss + objective(images[first:end], labels[first:end]).total
    (gradient,) = torch.autograd.grad(loss, images)
    return loss.detach(), gradient


def assert_equal_to_hooks(teacher: nn.Module, size: int, offsets: list[int] = OFFSETS) -> FusedTeacher:
    """Fuse a float64 teacher (torch backend), compare loss and image gradient with hooks, and return it."""
    fused = FusedTeacher(teacher, FIRST_WEIGHT, backend="torch")
    images, labels = batch(size, offsets)
    loss, gradient = packed(fused, images, labels, offsets)
    expected_loss, expected_gradient = by_hooks(teacher, images, labels, offsets)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
    assert (gradient - expected_gradient).norm() <= 1e-11 * expected_gradient.norm()
    return fused
