"""The validation set: all images in every pass, from files or from the cache."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.loading import COUNT, SPEC, delete_files, loader_config, reference_images

from delt_hpc.data.index import Index, scan
from delt_hpc.data.loader import ValidationSet
from delt_hpc.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")  # on one core


@pytest.mark.usefixtures("many_workers")
@pytest.mark.parametrize(("workers", "cache_mib"), [(0, 0), (2, 0), (0, 1), (2, 1)])
def test_every_pass_has_all_images_in_order(workers: int, cache_mib: int, index: Index) -> None:
    data = ValidationSet(index, SPEC, 7, loader_config(workers, cache_mib))
    for _ in range(2):
        found = list(data.batches())
        assert [len(labels) for _, labels in found] == [7, 7, 7, 2]
        assert torch.cat([labels for _, labels in found]).tolist() == list(range(COUNT))
        assert torch.equal(torch.cat([pixels for pixels, _ in found]), reference_images(index, list(range(COUNT))))


def test_images_are_cached_if_they_fit(removable: Index) -> None:
    reference = torch.cat([pixels for pixels, _ in ValidationSet(removable, SPEC, 4, loader_config(0, 0)).batches()])
    cached, uncached = (ValidationSet(removable, SPEC, 4, loader_config(0, mib)) for mib in (1, 0))
    for data in (cached, uncached):
        list(data.batches())
    delete_files(removable)
    assert torch.equal(torch.cat([pixels for pixels, _ in cached.batches()]), reference)
    with pytest.raises(UserError, match="4 unreadable"):
        list(uncached.batches())


def test_an_incomplete_pass_is_not_cached(index: Index) -> None:
    data = ValidationSet(index, SPEC, 7, loader_config(0, 1))
    next(data.batches())
    for _ in range(2):
        assert sum(len(labels) for _, labels in data.batches()) == COUNT


def test_the_cache_holds_a_byte_a_value(tmp_path: Path, image_folder: Callable[..., Path]) -> None:
    side, count = SPEC.size, 2**20 // (SPEC.size**2 * 3)
    index = scan(image_folder(tmp_path, {"a": 1}, size=side), ["a"])
    full = Index(index.root, index.paths * count, index.labels.repeat(count))
    val = ValidationSet(full, SPEC, 512, loader_config(0, 1))
    assert sum(len(labels) for _, labels in val.batches()) == count
    delete_files(index)
    assert sum(len(labels) for _, labels in val.batches()) == count
