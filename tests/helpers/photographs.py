"""Image files made from scikit-learn's two photographs, and helpers to inspect DALI's graphs."""

import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.index import Index


@cache
def photograph(height: int, width: int, which: int = 0) -> Image.Image:
    return Image.fromarray(load_sample_images().images[which]).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(height: int = 90, width: int = 120, **options: Any) -> bytes:
    return encoded(photograph(height, width), "JPEG", **{"quality": 92} | options)


def write_files(root: Path, files: dict[str, bytes]) -> Index:
    for name, content in files.items():
        (root / name).write_bytes(content)
    return Index(root, tuple(files), np.zeros(len(files), dtype=np.int64))


def denormalised(images: Tensor, spec: DatasetSpec) -> np.ndarray:
    """Normalised [B, 3, S, S] back to 0..255, [B, S, S, 3]."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    array: np.ndarray = ((images.cpu() * std + mean) * 255).permute(0, 2, 3, 1).numpy()
    return array


def operator_devices(pipeline: Any) -> dict[str, set[str]]:
    """The devices of the outputs of each type of operator, in a pipeline that was not built."""
    pipeline._build_graph()
    devices: dict[str, set[str]] = {}
    for operator in pipeline._ops:
        devices.setdefault(type(operator._op).__name__, set()).update(node.device for node in operator.outputs)
    return devices


def no_batches() -> Iterator[Any]:
    """An empty source, for pipelines that are only inspected."""
    yield from ()
