"""First and last form of a batch's images: real images or noise in, files out."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.loader import images
from delt_hpc.data.transforms import quantise
from delt_hpc.keyed_random import Key, generator
from delt_hpc.recovery.batches import Batch
from delt_hpc.run.folder import writing

SUFFIX = {"jpeg": ".jpg", "jpeg75": ".jpg", "png": ".png"}


def selected(batch: Batch, folder: Path, table: pd.DataFrame, spec: DatasetSpec) -> Tensor:
    """The selected real images of the batch, in its order: float32 [N, 3, S, S].

    Args:
        table: selected.csv.
    """
    return torch.cat(list(images(folder, _rows(batch, table)["file"].tolist(), spec, 64)))


def sources(batch: Batch, table: pd.DataFrame) -> list[str]:
    """Their paths in the training set."""
    paths: list[str] = _rows(batch, table)["img_path"].tolist()
    return paths


def _rows(batch: Batch, table: pd.DataFrame) -> pd.DataFrame:
    wanted = [(entry.class_index, entry.number) for entry in batch.entries]
    return table.set_index(["class_index", "number"]).loc[wanted]


def noise(batch: Batch, spec: DatasetSpec, *key: Key) -> Tensor:
    """Standard normal images, each a function of (key, class, number): float32 [N, 3, S, S]."""
    shape = (3, spec.size, spec.size)
    return torch.stack([torch.randn(shape, generator=generator(*key, e.class_index, e.number)) for e in batch.entries])


def encode(pixels: np.ndarray, image_format: str) -> bytes:
    """One image, uint8 [S, S, 3], as a file's bytes."""
    buffer, image = BytesIO(), Image.fromarray(pixels)
    if image_format == "png":
        image.save(buffer, "PNG")
    elif image_format == "jpeg":
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        image.save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


def file_of(class_index: int, number: int, image_format: str) -> str:
    """Where a batch's folder holds an image."""
    return f"images/{class_index:05d}/{number:05d}{SUFFIX[image_format]}"


def write(batch: Batch, optimised: Tensor, spec: DatasetSpec, image_format: str, folder: Path) -> None:
    """Every image of the batch as a file below the folder."""
    pixels = quantise(optimised, spec, truncate=image_format == "jpeg75").cpu().numpy()
    for entry, each in zip(batch.entries, pixels, strict=True):
        with writing(folder / file_of(entry.class_index, entry.number, image_format)) as file:
            file.write(encode(each, image_format))
