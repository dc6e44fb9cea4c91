"""Indexes of small images, and worker processes for few images."""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.loading import one_image_a_class

from delt_hpc.data import pil_loader
from delt_hpc.data.index import Index, scan


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory, image_folder: Callable[..., Path]) -> Index:
    """23 images in 23 classes; not to be changed."""
    return one_image_a_class(tmp_path_factory.mktemp("images"), image_folder)


@pytest.fixture
def removable(tmp_path: Path, image_folder: Callable[..., Path]) -> Index:
    """Six images that a test may damage or delete."""
    return scan(image_folder(tmp_path / "train", {"a": 3, "b": 3}, size=10), ["a", "b"])


@pytest.fixture
def many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images suffice for worker processes."""
    monkeypatch.setattr(pil_loader, "_MIN_IMAGES_FOR_WORKERS", 1)
