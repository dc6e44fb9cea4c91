"""Shapes and FLOPs of a network's layers."""

import pytest
from torch import nn

from delt_hpc.bench.layers import BatchNormLayer, batch_norm_layers, calls


def test_batch_norm_layers_of_a_network() -> None:
    layers = batch_norm_layers("resnet18", 32)
    assert layers.total() == 20
    assert layers[BatchNormLayer("bn + relu + max pool", False, 64, 16, 16)] == 1
    assert layers[BatchNormLayer("bn + add + relu", True, 128, 4, 4)] == 2


def test_flops_of_every_call() -> None:
    """4 x 4 pixels; a multiplication and an addition are two operations."""
    network = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 5)).eval()
    found = calls(network, 4)
    assert [call.flops for call in found] == [2 * 16 * 2 * 27, 0, 2 * 32 * 5]
    assert [(call.read, call.written) for call in found] == [(48, 32), (32, 32), (32, 5)]
    assert found[1].input == (2, 4, 4)


@pytest.mark.parametrize("network", ["convnet4", "resnet18"])
def test_every_batch_norm_layer_has_a_shape(network: str) -> None:
    assert all(layer.channels > 1 and layer.height == layer.width for layer in batch_norm_layers(network, 64))
