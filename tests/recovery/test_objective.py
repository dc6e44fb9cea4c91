"""The objective against float64 autograd of the formula, written out independently."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from delt_hpc.models.networks import ConvNet
from delt_hpc.recovery.objective import Objective


def frozen(network: nn.Module) -> nn.Module:
    """Float64, evaluation mode, statistics and affine terms that are not the initial ones."""
    generator = torch.Generator().manual_seed(7)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            shape = layer.running_mean.shape
            layer.running_mean.copy_(torch.randn(shape, generator=generator) * 0.3)
            layer.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
            layer.weight.data.copy_(torch.rand(shape, generator=generator) + 0.5)
    return network.double().eval().requires_grad_(False)


def written_out(network: nn.Module, images: Tensor, labels: Tensor, r_bn: float, w0: float) -> Tensor:
    """The published loss by forward hooks and sums over channels."""
    inputs_of: list[tuple[nn.BatchNorm2d, Tensor]] = []
    layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [m.register_forward_hook(lambda m, inputs, _: inputs_of.append((m, inputs[0]))) for m in layers]
    logits = network(images)
    for hook in hooks:
        hook.remove()
    loss = -(logits.log_softmax(1)[torch.arange(len(labels)), labels]).sum() / len(labels)
    for layer, x in inputs_of:
        rows = x.transpose(0, 1).reshape(x.shape[1], -1)
        mean = rows.sum(1) / rows.shape[1]
        var = ((rows - mean[:, None]) ** 2).sum(1) / rows.shape[1]
        distance = ((layer.running_var - var) ** 2).sum().sqrt() + ((layer.running_mean - mean) ** 2).sum().sqrt()
        loss = loss + r_bn * (w0 if layer is layers[0] else 1.0) * distance
    return loss


@pytest.mark.parametrize("r_bn", [0.0, 0.01, 2.0])
@pytest.mark.parametrize("build", [lambda: ConvNet(3, 5, 16), lambda: torchvision.models.resnet18(num_classes=5)])
def test_value_and_gradient(build, r_bn: float) -> None:
    torch.manual_seed(0)
    network = frozen(build())
    images, labels = torch.randn(6, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0])
    x, y = images.clone().requires_grad_(), images.clone().requires_grad_()
    with Objective(network, r_bn, 10.0) as objective:
        loss = objective(x, labels)
    expected = written_out(network, y, labels, r_bn, 10.0)
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=0)
    (ours,), (theirs,) = torch.autograd.grad(loss.total, x), torch.autograd.grad(expected, y)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(loss.total, loss.cross_entropy + r_bn * loss.bn_distance)


def test_gradient_agrees_with_finite_differences() -> None:
    torch.manual_seed(0)
    network = frozen(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Flatten(), nn.Linear(36, 3)))
    labels = torch.tensor([0, 2])
    with Objective(network, 0.5, 10.0) as objective:
        images = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x: objective(x, labels).total, (images,))


def test_cross_entropy_of_each_image() -> None:
    torch.manual_seed(0)
    network, labels = frozen(ConvNet(3, 4, 8)), torch.tensor([3, 1])
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with Objective(network, 0.01, 10.0) as objective:
        loss = objective(images, labels)
    torch.testing.assert_close(loss.cross_entropy_per_image, F.cross_entropy(network(images), labels, reduction="none"))


def test_hooks_come_off() -> None:
    network = frozen(ConvNet(3, 4, 8))
    with Objective(network, 0.01, 10.0):
        assert any(m._forward_pre_hooks for m in network.modules())
    assert not any(m._forward_pre_hooks for m in network.modules())


def test_the_teacher_does_not_change() -> None:
    network = frozen(ConvNet(3, 4, 8))
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    with Objective(network, 0.01, 10.0) as objective:
        objective(images, torch.tensor([0, 1])).total.backward()
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
