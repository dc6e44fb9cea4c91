"""The initial images of a batch (real images or noise), and the files of its optimised images."""

import shutil
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
from delt_hpc.run import checksums
from delt_hpc.run.folder import writing_folder

FOLDER = "images"
SUFFIX = {"jpeg": ".jpg", "jpeg75": ".jpg", "png": ".png"}


def load_selected(batch: Batch, folder: Path, table: pd.DataFrame, spec: DatasetSpec) -> Tensor:
    """The real images that were selected for the batch, in its order: float32 [N, 3, S, S], normalised.

    Args:
        folder: selected/ of the run.
        table: the contents of its selected.csv.
    """
    files = _rows(batch, table)["file"].tolist()
    checksums.require(folder, "select", files)
    paths = [checksums.located(folder, file) for file in files]
    return torch.cat(list(images(folder, paths, spec, 64)))


def source_paths(batch: Batch, table: pd.DataFrame) -> list[str]:
    """The paths of the selected images in the training set, in the batch's order."""
    paths: list[str] = _rows(batch, table)["img_path"].tolist()
    return paths


def _rows(batch: Batch, table: pd.DataFrame) -> pd.DataFrame:
    keys = [(entry.class_index, entry.number) for entry in batch.entries]
    return table.set_index(["class_index", "number"]).loc[keys]


def noise(batch: Batch, spec: DatasetSpec, *key: Key) -> Tensor:
    """Standard normal noise, float32 [N, 3, S, S]; each image is a function of (key, class, number)."""
    shape = (3, spec.size, spec.size)
    return torch.stack([torch.randn(shape, generator=generator(*key, e.class_index, e.number)) for e in batch.entries])


def encode(pixels: np.ndarray, image_format: str) -> bytes:
    """The bytes of an image file from pixels, uint8 [S, S, 3]."""
    buffer, image = BytesIO(), Image.fromarray(pixels)
    if image_format == "png":
        image.save(buffer, "PNG")
    elif image_format == "jpeg":
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        image.save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


def file_name(class_index: int, number: int, image_format: str) -> str:
    """The path of an image, relative to the folder of its batch."""
    return f"{FOLDER}/{class_index:05d}/{number:05d}{SUFFIX[image_format]}"


def write_images(batch: Batch, optimised: Tensor, spec: DatasetSpec, image_format: str, folder: Path) -> None:
    """Write all images of the batch, in place of those of an earlier attempt.

    Args:
        optimised: float [N, 3, S, S], normalised.
        folder: of the batch.
    """
    pixels = quantise(optimised, spec, truncate=image_format == "jpeg75").cpu().numpy()
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    with writing_folder(folder / FOLDER) as temporary:
        for entry, image_pixels in zip(batch.entries, pixels, strict=True):
            path = temporary / Path(file_name(entry.class_index, entry.number, image_format)).relative_to(FOLDER)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encode(image_pixels, image_format))
