"""Mosaics: the pool, the scores of crops, the order of tiles, the picture."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from delt_hpc.config.load import load_config
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.data.index import Index
from delt_hpc.ranking import mosaic


class Brightness(nn.Module):
    """Logits: the mean of the whole input, and twice the mean of its middle 2 x 2 pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        middle = images[:, :, 1:3, 1:3].mean((1, 2, 3))
        return torch.stack([images.mean((1, 2, 3)), 2 * middle], 1)


def test_scores_are_those_computed_by_hand() -> None:
    """Crops of 2 x 2 pixels of one value v in the middle of 4 x 4: the logits are v / 4 and 2 v."""
    values = torch.tensor([[0.0, 1.0, -1.0], [2.0, 2.0, 1.0]])
    crops = values[:, :, None, None, None].expand(2, 3, 3, 2, 2)
    scores, best = mosaic.best_crops(Brightness(), crops, np.array([1, 0]), 4, "float32")
    # Class 1: sigmoid(2 v - v / 4), largest for v = 1. Class 0: sigmoid(v / 4 - 2 v), largest for v = 1, the last crop.
    assert best.tolist() == [1, 2]
    assert scores == pytest.approx([1 / (1 + np.exp(-1.75)), 1 / (1 + np.exp(1.75))], rel=1e-6)


def test_of_equal_crops_the_first_is_the_best() -> None:
    _, best = mosaic.best_crops(Brightness(), torch.ones(1, 4, 3, 2, 2), np.array([0]), 4, "float32")
    assert best.tolist() == [0]


def test_the_best_crop_has_the_smallest_cross_entropy() -> None:
    """RDED's selection in plain PyTorch."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5)).eval()
    crops, labels = torch.randn(7, 5, 3, 4, 4), np.arange(7) % 5
    scores, best = mosaic.best_crops(network, crops, labels, 8, "float32")
    with torch.no_grad():
        padded = nn.ZeroPad2d(2)(crops.flatten(0, 1))
        targets = torch.from_numpy(labels).repeat_interleave(5)
        losses = F.cross_entropy(network(padded).double(), targets, reduction="none").view(7, 5)
    assert best.tolist() == losses.argmin(1).tolist()
    assert -np.log(scores) == pytest.approx(losses.min(1).values.numpy(), rel=1e-6)
    assert np.argsort(-scores).tolist() == losses.min(1).values.argsort().tolist()


def test_crops_lie_in_the_middle_of_zeros() -> None:
    padded = mosaic.pad(torch.ones(1, 1, 2, 2), 5)
    assert padded[0, 0].tolist() == [[0] * 5, [0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0] * 5, [0] * 5]


def test_every_mosaic_has_crops_of_all_parts_of_the_order() -> None:
    assert [mosaic.ranks(t, 3, 2) for t in range(3)] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert [mosaic.ranks(t, 3, 1) for t in range(3)] == [[0], [1], [2]]


def test_tiles_are_placed_row_by_row() -> None:
    tiles = [np.full((2, 2, 3), value, np.uint8) for value in (1, 2, 3, 4)]
    assert mosaic.compose(tiles, 2)[:, :, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert (mosaic.compose(tiles[:1], 1) == tiles[0]).all()


def test_the_pool_of_a_class_does_not_depend_on_other_images() -> None:
    paths = tuple(f"{folder}/{i}.png" for folder in "ab" for i in range(20))
    index = Index(Path("train"), paths, np.repeat([0, 1], 20))
    chosen = mosaic.pool(index, 1, 8, seed=3)
    assert len(chosen) == 8 and (np.diff(chosen) > 0).all() and set(index.labels[chosen]) == {1}
    assert set(mosaic.pool(index, 1, 5, seed=3)) < set(chosen)
    assert set(mosaic.pool(index, 1, 8, seed=4)) != set(chosen)
    assert mosaic.pool(index, 0, 300, seed=3).tolist() == list(range(20))
    kept = [p for p in range(40) if p != chosen[0]]
    without = Index(Path("train"), tuple(paths[p] for p in kept), index.labels[kept])
    left = {without.paths[p] for p in mosaic.pool(without, 1, 8, seed=3)}
    assert {paths[p] for p in chosen[1:]} < left


@pytest.mark.parametrize(
    ("data_set", "tiles", "side"), [("cifar10", 1, 32), ("tiny-imagenet", 2, 32), ("imagenette", 2, 112)]
)
def test_small_images_have_one_crop(data_set: str, tiles: int, side: int) -> None:
    config, spec = load_config("digits", ["method=rded"]), SPECS[data_set]
    assert config.rank.tiles_at(spec.size) == tiles
    assert mosaic.crops_of(config, spec).side == side
