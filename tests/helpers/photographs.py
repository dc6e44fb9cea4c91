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


def odd_files() -> dict[str, bytes]:
    """Valid images in every unusual format, by file name."""
    image, gray = photograph(90, 120), photograph(90, 120).convert("L")
    rotated = Image.Exif()
    rotated[0x0112] = 6
    clear = image.convert("RGBA")
    clear.putalpha(gray)
    palette = image.convert("P")
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    return {
        "gray.jpg": encoded(gray, "JPEG"),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "rgb.jpg": jpeg(keep_rgb=True),
        "progressive.jpg": jpeg(progressive=True),
        "444.jpg": jpeg(subsampling=0),
        "exif.jpg": jpeg(exif=rotated),
        "icc.jpg": jpeg(icc_profile=b"no colour profile" * 9000),
        "rgb.png": encoded(image, "PNG"),
        "exif.png": encoded(image, "PNG", exif=rotated),
        "gray.png": encoded(gray, "PNG"),
        "bit.png": encoded(image.convert("1"), "PNG"),
        "deep.png": encoded(deep, "PNG"),
        "alpha.png": encoded(clear, "PNG"),
        "gray-alpha.png": encoded(clear.convert("LA"), "PNG"),
        "palette.png": encoded(palette, "PNG"),
        "palette-alpha.png": encoded(palette, "PNG", transparency=3),
        "colour-key.png": encoded(image, "PNG", transparency=image.getpixel((5, 5))),
        "lossy.webp": encoded(image, "WEBP"),
        "lossless.webp": encoded(image, "WEBP", lossless=True),
        "alpha.webp": encoded(clear, "WEBP"),
        "a.bmp": encoded(image, "BMP"),
        "a.tif": encoded(image, "TIFF"),
        "lzw.tiff": encoded(clear, "TIFF", compression="tiff_lzw"),
        "a.ppm": encoded(image, "PPM"),
        "a.pgm": encoded(gray, "PPM"),
        "dot.png": encoded(photograph(1, 1), "PNG"),
        "dot.jpg": encoded(photograph(1, 1), "JPEG"),
        "png inside.jpg": encoded(image, "PNG"),
        "gif inside.jpg": encoded(palette, "GIF"),
        "huge.jpg": jpeg(3000, 4500),
    }


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
