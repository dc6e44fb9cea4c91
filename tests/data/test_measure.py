"""Measured channel means and standard deviations against NumPy's."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from delt_hpc.config.schema import Data
from delt_hpc.data import measure
from delt_hpc.data.index import Index, scan
from delt_hpc.errors import UserError
from delt_hpc.keyed_random import permutation


def write(root: Path, images: np.ndarray) -> Index:
    (root / "a").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(root / "a" / f"{number:03d}.png")
    return scan(root, ["a"])


def random_images(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_colours_are_those_of_all_pixels(tmp_path: Path) -> None:
    images = random_images(20, 8, 8)
    mean, std = measure.colours(write(tmp_path, images), Data(name="mine", size=8), seed=0)
    values = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, values.std(axis=0), rtol=1e-12)


def test_a_tiny_deviation_is_measured_without_cancellation(tmp_path: Path) -> None:
    images = np.full((4, 100, 100, 3), 200, dtype=np.uint8)
    images[0, 0, 0] = 201
    _, std = measure.colours(write(tmp_path, images), Data(name="mine", size=100), seed=0)
    fraction = 1 / 40_000
    np.testing.assert_allclose(std, np.sqrt(fraction * (1 - fraction)) / 255, rtol=1e-9)


def test_only_the_centre_counts_after_the_shorter_side_is_resized(tmp_path: Path) -> None:
    image = np.zeros((1, 16, 48, 3), dtype=np.uint8)
    image[:, :8, 12:36] = 255  # columns 16 to 31 are kept: half white, half black
    mean, std = measure.colours(write(tmp_path, image), Data(name="mine", size=8), seed=0)
    np.testing.assert_allclose(mean, 0.5, atol=0.01)
    np.testing.assert_allclose(std, 0.5, atol=0.03)


def test_grey_images_have_three_equal_channels_at_the_registered_size(tmp_path: Path) -> None:
    images = random_images(5, 16, 16)[..., 0]
    mean, std = measure.colours(write(tmp_path, images), Data(name="digits"), seed=0)
    np.testing.assert_allclose(mean, images.mean() / 255, rtol=1e-12)
    np.testing.assert_allclose(std, images.std() / 255, rtol=1e-12)


def test_the_seed_selects_the_measured_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MAX_IMAGES", 3)
    images = random_images(12, 8, 8)
    index, data = write(tmp_path, images), Data(name="mine", size=8)
    found = [measure.colours(index, data, seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    sample = images[permutation(12, 1, "measure", "colours")[:3]] / 255
    np.testing.assert_allclose(found[0], (sample.mean(axis=(0, 1, 2)), sample.std(axis=(0, 1, 2))), rtol=1e-12)


def test_a_channel_that_never_changes_is_refused(tmp_path: Path) -> None:
    images = random_images(3, 8, 8)
    images[..., 1:] = 77
    with pytest.raises(UserError, match="green and blue is the same in every pixel of 3 images"):
        measure.colours(write(tmp_path, images), Data(name="mine", size=8), seed=0)


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_an_unreadable_image_is_named(content: bytes | None, tmp_path: Path) -> None:
    index = write(tmp_path, random_images(40, 8, 8))
    bad = tmp_path / "a" / "007.png"
    bad.write_bytes(bad.read_bytes()[:60] if content is None else content)
    with pytest.raises(UserError, match=r"a/007\.png"):
        measure.colours(index, Data(name="mine", size=8), seed=0)


def test_no_readable_image_is_an_error(tmp_path: Path) -> None:
    index = write(tmp_path, random_images(3, 8, 8))
    for path in index.paths:
        (tmp_path / path).write_bytes(b"no image")
    with pytest.raises(UserError, match="not one of 3 training images is readable"):
        measure.colours(index, Data(name="mine", size=8, on_bad="skip"), seed=0)


def test_an_unregistered_data_set_needs_a_size(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        measure.colours(write(tmp_path, random_images(2, 8, 8)), Data(name="mine"), seed=0)
    assert caught.value.where == "data.size"
