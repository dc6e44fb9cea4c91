"""Random square crops: their windows, their pixels from both loaders, and what they depend on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.photographs import jpeg, odd_files, write_files
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from delt_hpc.data.bad_files import BadFiles
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.data.crops import Crops
from delt_hpc.data.index import Index
from delt_hpc.data.loader import Backend, LoaderConfig, crop_batches
from delt_hpc.data.random_crop import Window
from delt_hpc.errors import UserError

SPEC = replace(SPECS["imagenet-1k"], size=32, resize=36)
CROPS = Crops(3, 16, (0.08, 1.0), (7, "crop"))
CPU = torch.device("cpu")


def pixels(index: Index, backend: Backend, batch_size: int = 4, bad: BadFiles | None = None) -> torch.Tensor:
    """All crops, [n, 3, 16, 16, 3], in 0..255."""
    pytest.importorskip("nvidia.dali") if backend == "dali-cpu" else None
    config = LoaderConfig(backend, CPU, 1)
    batches = list(crop_batches(index, np.arange(len(index)), SPEC, batch_size, CROPS, config, bad or BadFiles()))
    places = np.concatenate([places for _, places in batches])
    assert places.tolist() == sorted(places.tolist())
    mean, std = torch.tensor(SPEC.mean), torch.tensor(SPEC.std)
    return (torch.cat([crops for crops, _ in batches]).permute(0, 1, 3, 4, 2) * std + mean) * 255


def test_windows_are_square_and_cover_all_areas_and_places() -> None:
    windows = [CROPS.window(f"{i}.png", 0, 100, 140) for i in range(3000)]
    assert all(w.height == w.width for w in windows)
    assert all(0 <= w.top <= 100 - w.height and 0 <= w.left <= 140 - w.width for w in windows)
    shares = np.array([w.height * w.width / 14000 for w in windows])
    # Larger squares than the shorter side are drawn again, so areas are uniform from 0.08 to 100 * 100 / 14000.
    assert shares.min() == pytest.approx(0.08, abs=0.005) and shares.max() == pytest.approx(10000 / 14000, abs=0.005)
    assert shares.mean() == pytest.approx((0.08 + 10000 / 14000) / 2, abs=0.01)
    offsets = [w.left / (140 - w.width) for w in windows]
    assert np.mean(offsets) == pytest.approx(0.5, abs=0.03)


def test_a_window_depends_on_path_number_and_key_alone() -> None:
    window = CROPS.window("a/0.png", 1, 50, 60)
    assert CROPS.window("a/0.png", 1, 50, 60) == window
    others = (
        CROPS.window("a/0.png", 2, 50, 60),
        CROPS.window("a/1.png", 1, 50, 60),
        CROPS._replace(key=(8, "crop")).window("a/0.png", 1, 50, 60),
    )
    assert window not in others and len(set(others)) == 3


def test_a_scale_of_one_is_the_largest_square_in_the_middle() -> None:
    whole = CROPS._replace(scale=(1.0, 1.0))
    assert whole.window("a", 0, 40, 40) == Window(0, 0, 40, 40)
    assert whole.window("a", 0, 40, 60) == Window(0, 10, 40, 40)
    assert whole.window("a", 0, 60, 40) == Window(10, 0, 40, 40)


@pytest.mark.parametrize("backend", ["torchvision", "dali-cpu"])
def test_pixels_are_those_of_torchvision_s_resized_crop(tmp_path: Path, backend: Backend) -> None:
    index = write_files(tmp_path, {f"{i}.jpg": jpeg(90 + 7 * i, 120 - 5 * i) for i in range(6)})
    found = pixels(index, backend)
    assert found.shape == (6, 3, 16, 16, 3)
    for position, path in enumerate(index.paths):
        image = Image.open(tmp_path / path).convert("RGB")
        for number in range(3):
            window = CROPS.window(path, number, image.height, image.width)
            expected = np.asarray(tv.resized_crop(image, *window, size=[16, 16], antialias=True)).astype(float)
            assert np.abs(found[position, number].numpy() - expected).max() <= 1.01


def test_both_loaders_read_unusual_files_alike(tmp_path: Path) -> None:
    files = {name: content for name, content in odd_files().items() if name != "huge.jpg"}
    index = write_files(tmp_path, files)
    assert (pixels(index, "dali-cpu") - pixels(index, "torchvision")).abs().max() <= 1.01


@pytest.mark.parametrize("backend", ["torchvision", "dali-cpu"])
def test_crops_do_not_depend_on_the_batch_size(tmp_path: Path, backend: Backend) -> None:
    index = write_files(tmp_path, {f"{i}.jpg": jpeg(60 + i, 80) for i in range(5)})
    assert torch.equal(pixels(index, backend, 1), pixels(index, backend, 5))


@pytest.mark.parametrize("backend", ["torchvision", "dali-cpu"])
def test_unreadable_files_are_named_or_skipped(tmp_path: Path, backend: Backend) -> None:
    index = write_files(tmp_path, {"0.jpg": jpeg(), "1.jpg": b"no image", "2.jpg": jpeg()})
    with pytest.raises(UserError, match=r"1\.jpg"):
        pixels(index, backend)
    bad = BadFiles("skip")
    assert len(pixels(index, backend, bad=bad)) == 2
    assert [file.position for file in bad.files] == [1]
