"""Environment of the tests, and real image files on disk, small and the same every time."""

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

# Triton reads it when kernels are imported: without a CUDA device they run on CPU tensors, in its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

ImageFolder = Callable[..., Path]

# The operators are also tested where only torch is installed (`make test-oldest`).
PLUGINS = ["helpers.program", "helpers.toy", "helpers.slurm_cluster", "helpers.cluster_runs"]
pytest_plugins = PLUGINS if find_spec("pydantic") else []

# One thread in this process and in those that tests start: several processes with all threads slow each other down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are for machines that have one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def image_folder() -> ImageFolder:
    """`image_folder(root, {class folder: count}, size, suffix)` writes root/<class folder>/<number><suffix>."""
    return _write


def _write(root: Path, counts: Mapping[str, int], size: int | tuple[int, int] = 16, suffix: str = ".png") -> Path:
    """Noise that is a function of split, class and number.

    Args:
        root: folder of a split, made where it is not there; its name is the split's.
        counts: images of each class folder, which may be a path below `root`; 0 makes an empty folder.
        size: pixels, one number or (width, height).
        suffix: `.png`, or `.jpg` for a file whose pixels are not the noise itself.
    """
    width, height = (size, size) if isinstance(size, int) else size
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            random = np.random.default_rng(list(f"{root.name}/{folder}/{number}".encode()))
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{number:05d}{suffix}")
    return root
