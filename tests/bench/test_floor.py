"""The floor's operations and bytes, against counts by hand and published sizes of networks."""

import pytest
import torch
from torch import Tensor, nn

from delt_hpc.bench.floor import Product, Work, work
from delt_hpc.bench.peaks import STATED, Peak
from delt_hpc.models.registry import build

H200 = Peak(790e12, 4.3e12)  # about what it reaches


@pytest.mark.parametrize(
    ("network", "size", "gflop", "ms"),
    [("resnet18", 224, 726, 1.59), ("resnet50", 224, 1636, 5.87), ("convnet4", 64, 85, 0.26)],
)
def test_known_networks(network: str, size: int, gflop: float, ms: float) -> None:
    """100 images in bfloat16: twice the usual count of a forward pass, for the gradient takes as many."""
    with torch.random.fork_rng():
        needed = work(build(network, 1000 if size == 224 else 200, size).eval(), size)
    assert needed.flops(100) / 1e9 == pytest.approx(gflop, rel=0.002)
    assert 1000 * needed.seconds(100, 2, H200) == pytest.approx(ms, rel=0.02)


@pytest.mark.parametrize(("device", "ms"), [("H100", 1.63), ("H200", 1.33)])
def test_floors_at_stated_speeds(device: str, ms: float) -> None:
    """As docs/benchmarks/README.md has them."""
    needed = work(build("resnet18", 1000, 224).eval(), 224)
    assert 1000 * needed.seconds(100, 2, STATED[device]) == pytest.approx(ms, abs=0.005)
    assert needed.bytes(100, 2) / 1e9 == pytest.approx(4.45, abs=0.005)


@pytest.mark.parametrize(("device", "student", "teacher"), [("H100", 1.01, 0.36), ("H200", 0.85, 0.30)])
def test_floors_of_evaluation(device: str, student: float, teacher: float) -> None:
    """As docs/benchmarks/README.md has them."""
    needed = work(build("resnet18", 1000, 224).eval(), 224)
    assert 1000 * needed.training_seconds(50, 2, STATED[device]) == pytest.approx(student, abs=0.005)
    assert 1000 * needed.inference_seconds(50, 2, STATED[device]) == pytest.approx(teacher, abs=0.005)


def test_a_chain_by_hand() -> None:
    """4 x 4 pixels, 2 channels, pooled to 2 x 2, 5 classes."""
    network = nn.Sequential(
        nn.Conv2d(3, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip
    x, pooled = 2 * 16, 2 * 4
    needed = work(network.eval(), 4)
    assert needed.products == (Product(2 * 16 * 2 * 27, 3 * 16 + x, 54), Product(2 * 8 * 5, 8 + 5, 40))
    assert (needed.forward, needed.backward) == (x + pooled, pooled + 2 * x)


class Block(nn.Module):
    """The sum of a BatchNorm's output and a shortcut, read by the next block's convolution and its shortcut."""

    def __init__(self, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn, self.shortcut = nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2), shortcut

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)) + self.shortcut(x))


def residual(*shortcuts: nn.Module) -> int:
    """Elements that the passes between the products move, of 4 x 4 pixels with 2 channels, per element of these."""
    stem = [nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.ReLU()]
    network = nn.Sequential(*stem, *map(Block, shortcuts), nn.Flatten(), nn.Linear(32, 5))
    needed = work(network.eval(), 4)
    moved, rest = divmod(needed.forward + needed.backward, 32)
    assert not rest
    return moved


def test_a_shortcut_by_hand() -> None:
    stem = (1 + 1) + (2 + 1 + 1)  # two readers of its output, so two gradients
    assert residual(nn.Identity()) == stem + (1 + 1 + 1) + (1 + 1 + 1 + 1)
    forked = (1 + 1 + 1) + (2 + 1 + 1 + 1)
    assert residual(nn.Identity(), nn.Identity()) == stem + forked + (1 + 1 + 1) + (1 + 1 + 1 + 1)


def test_a_shortcut_with_a_batch_norm_is_one_pass_with_the_sum() -> None:
    stem = (1 + 1) + (2 + 1 + 1)
    shortcut = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2))
    both_inputs_and_the_sum = (1 + 1 + 1) + (1 + 2 + 2)
    assert residual(shortcut) == stem + both_inputs_and_the_sum


def test_operations_or_bytes_hold_up_a_product_and_bytes_the_rest() -> None:
    needed = Work((Product(flops=100, activations=10, weights=7),), forward=10, backward=20)
    assert needed.flops(4) == 2 * 4 * 100
    assert needed.bytes(4, 2) == 2 * (2 * (4 * 10 + 7) + 4 * 30)
    busy, starved = Peak(1.0, 1e3), Peak(1e9, 1.0)
    assert needed.seconds(4, 2, busy) == pytest.approx(needed.flops(4) + 2 * 4 * 30 / 1e3)
    assert needed.seconds(4, 2, starved) == pytest.approx(needed.bytes(4, 2))


def test_training_and_inference_by_hand() -> None:
    """Three products a layer, but no gradient of the images; one product in a forward pass."""
    needed = Work((Product(flops=100, activations=0, weights=0), Product(1000, 0, 0)), forward=10, backward=20)
    peak = Peak(1.0, 1.0)
    assert needed.inference_seconds(4, 2, peak) == 4 * (1100 + 2 * 10)
    assert needed.seconds(4, 2, peak) == 4 * (2 * 1100 + 2 * 30)
    assert needed.training_seconds(4, 2, peak) == 4 * (2 * 100 + 3 * 1000 + 2 * 30)


def test_the_network_is_left_alone() -> None:
    network = build("convnet3", 10, 8).eval()
    work(network, 8)
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.device.type == "cpu" for parameter in network.parameters())
