"""Folding BatchNorm into convolutions changes nothing but rounding, and leaves alone what it cannot fold."""

import pytest
import torch
from torch import Tensor, nn

from delt_hpc.keyed_random import seeded
from delt_hpc.models.folding import fold_batch_norms
from delt_hpc.models.registry import build


def with_statistics(network: nn.Module, size: int) -> nn.Module:
    """In float64 and evaluation mode, with BatchNorm statistics of random images."""
    network.double().train()(torch.randn(8, 3, size, size, dtype=torch.float64))
    return network.eval().requires_grad_(False)


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def norms_called(network: nn.Module) -> int:
    called: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda *call: called.append(call[0]))
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    network(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    for hook in hooks:
        hook.remove()
    return len(called)


@pytest.mark.parametrize("name", ["convnet3", "resnet18-small-stem", "mobilenet_v2"])
def test_the_folded_network_computes_the_same(name: str) -> None:
    with seeded("folding", name):
        network = with_statistics(build(name, 10, 32), 32)
        images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    folded = fold_batch_norms(network)
    assert norms(network) > 0 and norms_called(folded) == 0
    torch.testing.assert_close(folded(images), network(images), rtol=1e-9, atol=1e-9)


class Shared(nn.Module):
    """A convolution that is called twice, one whose output is read twice, and one that can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.read_twice, self.plain = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.twice(x)) + self.norms[1](self.twice(2 * x))
        y = self.read_twice(x)
        x = y + self.norms[2](y)
        return self.norms[3](self.plain(x))  # type: ignore[no-any-return]


def test_shared_layers_are_left_as_they_are() -> None:
    with seeded("folding", "shared"):
        network = with_statistics(Shared(), 32)
        images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    folded = fold_batch_norms(network)
    assert norms_called(folded) == 3
    torch.testing.assert_close(folded(images), network(images))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_network_that_cannot_be_traced_is_returned() -> None:
    network = Branching()
    assert fold_batch_norms(network) is network
